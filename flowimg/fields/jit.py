"""A velocity field for pictures of any shape: a plain transformer over patches, with what helps one to learn.

    h   = E_2 E_1 patches(x)                                  a patch goes through a bottleneck
    c   = MLP(waves(t)) + class + A augmentation              what the field is given
    m_b = M silu(c) + r_b        six of the width each        one matrix M for all blocks, a row r_b for each
    h  <- h + m_b3 * attention((1 + m_b2) norm(h) + m_b1)
    h  <- h + m_b6 * glu((1 + m_b5) norm(h) + m_b4)
    v   = patches back of L ((1 + n_2) norm(h) + n_1),        n = N silu(c)

All matrices but E_1 and A have biases. norm(h) is h over its root mean square; glu(h) = W_3 (silu(W_1 h) * W_2 h). In
the attention, queries and keys are normed, scaled by learned numbers, and turned by the place of their patch: half of a
head's pairs by its row, half by its column, pair k of n by the angle place * 10000^(-k / n), so that scores between
patches depend on differences of places only, and any rectangle fits. M, N and all m start at 0 (adaLN-zero): each block
starts as the identity.

Class tokens are learned tokens, each with the class added, that stand before the patches from a third of the blocks
on, turned by no angle, and are dropped at the end: what all patches ask of the class is computed there once.
Sources: Li and He 2025, arXiv:2511.13720 (bottleneck, class tokens); Peebles and Xie 2023, arXiv:2212.09748
(adaLN-zero); Chen et al. 2023, arXiv:2310.00426 (one modulation for all blocks); Su et al. 2021, arXiv:2104.09864
(turned by place); Henry et al. 2020, arXiv:2010.04245 (normed queries and keys); Shazeer 2020, arXiv:2002.05202 (glu).
"""

import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from flowimg.fields.mlp import class_rows
from flowimg.fields.patches import velocity_of_data
from flowimg.flow.condition import Condition

WAVES = 256
"""Numbers that the network is given of t: sines and cosines of 1000 t over frequencies from 1 down to 1/10,000."""
BASE = 10_000
EPS = 1e-6


class JiTField(nn.Module):
    """Velocity of pictures whose sides the patch divides.

    Args:
        channels: Channels of a picture.
        num_classes: Number of classes; 0 makes the field unconditional.
        width: Numbers a token, a multiple of 4 times `heads`.
        depth: Blocks.
        heads: Attention heads.
        patch: Pixels a side of a patch.
        bottleneck: Numbers that a patch is brought to first; None for one number a number of the patch, at most 128.
        class_tokens: Tokens that hold the class.
        dropout: Share dropped of what attention and glu add.
        output: "v", or "x" for a network that predicts the data.
        gradient_checkpointing: Compute the activations of a block again in the backward pass.
        zero_output: Every block starts as the identity, and the velocity (or the data) as 0.
        numbers: How many numbers each further part of a condition has, by its name.
    """

    edges = ("enter", "embed", "augment", "leave")
    """Modules whose weights do not map hidden units to hidden units."""
    gathered = ("blocks",)
    """Modules, or lists of them, whose weights are gathered together where the field is sharded."""

    def __init__(
        self,
        channels: int,
        num_classes: int = 0,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        patch: int = 2,
        bottleneck: int | None = None,
        class_tokens: int = 0,
        dropout: float = 0.0,
        output: str = "v",
        gradient_checkpointing: bool = False,
        zero_output: bool = True,
        numbers: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.num_classes, self.patch, self.output, self.pairs = num_classes, patch, output, width // heads // 2
        self.gradient_checkpointing = gradient_checkpointing
        self.class_tokens, self.from_block = class_tokens if num_classes else 0, depth // 3
        inside = channels * patch**2
        narrow = bottleneck or min(inside, 128)
        self.enter = nn.Sequential(nn.Linear(inside, narrow, bias=False), nn.Linear(narrow, width))
        self.time = nn.Sequential(nn.Linear(WAVES, width), nn.SiLU(), nn.Linear(width, width))
        # one row a class and a last one for "no class"
        self.embed = nn.Embedding(num_classes + 1, width) if num_classes else None
        # without bias: an augmentation of 0 adds 0
        count = numbers.get("augmentation")
        self.augment = nn.Linear(count, width, bias=False) if count else None
        self.tokens = nn.Parameter(0.02 * torch.randn(self.class_tokens * width)) if self.class_tokens else None
        self.modulate = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(depth))
        self.last = nn.Linear(width, 2 * width)
        self.leave = nn.Linear(width, inside)
        self._start(zero_output)

    def _start(self, zero_output: bool) -> None:
        """Weights at the start: embeddings small, and the gates closed."""
        if self.embed is not None:
            nn.init.normal_(self.embed.weight, std=0.02)
        if self.augment is not None:
            nn.init.zeros_(self.augment.weight)
        for layer in (self.modulate, self.last, self.leave) if zero_output else ():
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """Velocity at x and t.

        Args:
            x: Pictures on the way from noise to data, shape (B, C, H, W).
            t: Flow times in [0, 1], shape (B,); 0 is noise, 1 is data.
            cond: Its label, shape (B,), and augmentation, shape (B, 9), are used; absent, they are null for all.

        Returns:
            Velocity, shape (B, C, H, W), in data units per unit of t.
        """
        size, p = x.shape[-2:], self.patch
        # (B, C, H, W) -> (B, H/p W/p, C p p), row by row
        h = self.enter(rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p))
        said, label = self._said(t, cond)
        shared, turns = self.modulate(said), turns_of(size[0] // p, size[1] // p, self.pairs, x.device)
        for number, block in enumerate(self.blocks):
            if number == self.from_block and self.class_tokens:
                assert label is not None
                assert self.tokens is not None
                tokens = self.tokens.view(self.class_tokens, -1) + label[:, None]
                h = torch.cat([tokens.to(h.dtype), h], 1)
                turns = F.pad(turns, (0, 0, self.class_tokens, 0), value=0.0)  # tokens have no place: turned by 0
            if self.gradient_checkpointing and torch.is_grad_enabled():
                h = checkpoint(block, h, shared, turns, use_reentrant=False)
            else:
                h = block(h, shared, turns)
        h = h[:, self.class_tokens :]
        shift, scale = self.last(said)[:, None].chunk(2, 2)
        patches = self.leave(norm(h) * (1 + scale) + shift)
        output = rearrange(patches, "b (h w) (c p q) -> b c (h p) (w q)", h=size[0] // p, p=p, q=p)
        return velocity_of_data(output, x, t) if self.output == "x" else output

    def _said(self, t: Tensor, cond: Condition | None) -> tuple[Tensor, Tensor | None]:
        """What time, class and augmentation say, shape (B, width), and the class by itself."""
        steps = torch.arange(WAVES // 2, device=t.device, dtype=torch.float32)
        angles = 1000 * t[:, None].float() * torch.exp(-math.log(BASE) / (WAVES // 2) * steps)
        said, label = self.time(torch.cat([angles.cos(), angles.sin()], 1)), None
        if self.embed is not None:
            label = self.embed(class_rows(cond, len(t), self.num_classes, t.device))
            said = said + label
        if self.augment is not None and cond is not None and cond.augmentation is not None:
            said = said + self.augment(cond.augmentation)
        return F.silu(said), label


class Block(nn.Module):
    """Attention between the tokens, then a gated layer on each of them."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        # about as many weights as two layers with four times the width between them; a multiple of 32
        hidden = -(-8 * width // 3 // 32) * 32
        self.qkv = nn.Linear(width, 3 * width)
        self.queries, self.keys = (nn.Parameter(torch.ones(width // heads)) for _ in range(2))
        self.mix = nn.Linear(width, width)
        self.gate_and_value = nn.Linear(width, 2 * hidden)
        self.down = nn.Linear(hidden, width)
        self.row = nn.Parameter(torch.zeros(6 * width))
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, h: Tensor, shared: Tensor, turns: Tensor) -> Tensor:
        """The tokens h, shape (B, N, width), after the block.

        Args:
            h: Tokens.
            shared: The modulation that all blocks share, shape (B, 6 width).
            turns: Angles of the places, shape (N, pairs).
        """
        shift, scale, gate, shift_2, scale_2, gate_2 = (shared + self.row)[:, None].chunk(6, 2)
        h = h + gate * self.dropout(self._attend(norm(h) * (1 + scale) + shift, turns))
        gated, value = self.gate_and_value(norm(h) * (1 + scale_2) + shift_2).chunk(2, 2)
        return h + gate_2 * self.dropout(self.down(F.silu(gated) * value))

    def _attend(self, h: Tensor, turns: Tensor) -> Tensor:
        q, k, v = self.qkv(h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = turned(norm(q) * self.queries, turns), turned(norm(k) * self.keys, turns)
        mixed = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
        return self.mix(mixed.transpose(1, 2).flatten(2))


def norm(h: Tensor) -> Tensor:
    """h over the root mean square of its last dimension."""
    return F.rms_norm(h, h.shape[-1:], eps=EPS)


def turns_of(rows: int, columns: int, pairs: int, device: torch.device) -> Tensor:
    """The angle of each pair of a head at each patch, row by row, shape (rows columns, pairs)."""
    count = pairs // 2
    speeds = torch.exp(-math.log(BASE) / count * torch.arange(count, device=device, dtype=torch.float32))
    down = torch.arange(rows, device=device)[:, None, None] * speeds
    along = torch.arange(columns, device=device)[None, :, None] * speeds
    return torch.cat([down.expand(-1, columns, -1), along.expand(rows, -1, -1)], 2).flatten(0, 1)


def turned(heads: Tensor, turns: Tensor) -> Tensor:
    """Each pair of numbers (i, i + pairs) of each head, shape (B, heads, N, 2 pairs), turned by its angle."""
    first, second = heads.chunk(2, 3)
    cos, sin = turns.cos().to(heads.dtype), turns.sin().to(heads.dtype)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], 3)
