"""A velocity field for points: a plain multilayer perceptron.

    v = W_n silu(... silu(W_1 [x, sin(w x), cos(w x), t, sin(2 pi k t), cos(2 pi k t)] + class))

The sines of x (Fourier features, Tancik et al. 2020, arXiv:2006.10739) let a small network draw sharp edges.
"""

import math

import torch
from torch import Tensor, nn

from flowimg.flow.condition import NO_CLASS, Condition


class MLPField(nn.Module):
    """Velocity of points.

    Args:
        dim: Coordinates of a point.
        num_classes: Number of classes that the field can be conditioned on; 0 makes it unconditional.
        width: Units a hidden layer.
        depth: Hidden layers.
        x_frequencies: Sine and cosine of x at the frequencies 1 .. n times pi / `x_range`; 0 for none.
        t_frequencies: Sine and cosine of t at the frequencies 1 .. n times 2 pi; 0 for none.
        x_range: Half the period of the lowest frequency of x, in data units.
        dropout: Share of hidden units dropped in training.
        zero_output: Start from the velocity 0.
    """

    edges = ("enter", "embed", "leave")
    """Modules whose weights do not map hidden units to hidden units."""

    def __init__(
        self,
        dim: int,
        num_classes: int = 0,
        width: int = 128,
        depth: int = 4,
        x_frequencies: int = 0,
        t_frequencies: int = 0,
        x_range: float = 5.0,
        dropout: float = 0.0,
        zero_output: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.x_waves: Tensor
        self.t_waves: Tensor
        self.register_buffer("x_waves", torch.arange(1, x_frequencies + 1) * (math.pi / x_range), persistent=False)
        self.register_buffer("t_waves", torch.arange(1, t_frequencies + 1) * (2 * math.pi), persistent=False)
        self.enter = nn.Linear(dim * (1 + 2 * x_frequencies) + 1 + 2 * t_frequencies, width)
        # one row a class and a last one for "no class"; added where the first layer adds its bias
        self.embed = nn.Embedding(num_classes + 1, width) if num_classes else None
        layers: list[nn.Module] = []
        for _ in range(depth - 1):
            # where nothing is dropped nothing is called, but weights have the same names
            layers += [nn.SiLU(), nn.Dropout(dropout) if dropout else nn.Identity(), nn.Linear(width, width)]
        self.body = nn.Sequential(*layers, nn.SiLU())
        self.leave = nn.Linear(width, dim)
        if zero_output:
            nn.init.zeros_(self.leave.weight)
            nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """Velocity at x and t.

        Args:
            x: Points, shape (B, dim).
            t: Flow times in [0, 1], shape (B,).
            cond: Its label, shape (B,), is used; absent, it is "no class" for all.

        Returns:
            Velocity, shape (B, dim).
        """
        t = t[:, None]
        parts = [x, t]
        if len(self.x_waves):
            angle = (x[:, :, None] * self.x_waves).flatten(1)
            parts += [angle.sin(), angle.cos()]
        if len(self.t_waves):
            parts += [(t * self.t_waves).sin(), (t * self.t_waves).cos()]
        h = self.enter(torch.cat(parts, dim=1))
        if self.embed is not None:
            h = h + self.embed(class_rows(cond, len(x), self.num_classes, x.device))
        return self.leave(self.body(h))


def class_rows(cond: Condition | None, batch: int, num_classes: int, device: torch.device) -> Tensor:
    """Labels as rows of an embedding with `num_classes + 1` rows, of which the last means "no class"; shape (B,)."""
    if cond is None or cond.label is None:
        return torch.full((batch,), num_classes, device=device)
    return torch.where(cond.label == NO_CLASS, num_classes, cond.label)
