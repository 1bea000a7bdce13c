"""A velocity field for square pictures: diffusers' DiTTransformer2DModel, kept in diffusers' own convention.

    v(x, t) = -transformer(x, 1000 (1 - t), class),

so that the network inside is, as it stands, the transformer of a stock `DiTPipeline`. Patches are tokens with fixed
sines for their places; time and class scale, shift and gate each half of a block (adaLN-zero), by weights of its own:
each block embeds time anew, and has its own table of classes, of 1,001 rows whatever the number of classes.
Source: Peebles and Xie 2023, arXiv:2212.09748.
"""

import json
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

from flowimg.fields.mlp import class_rows
from flowimg.fields.patches import patch_problem, velocity_of_data
from flowimg.fields.stock import stock_network, with_changes
from flowimg.flow.condition import Condition
from flowimg.names import on_disk

FREE = 1000
"""The class that stands for "no class" in `DiTPipeline`, whatever the number of classes."""


def dit_problem(shapes: Sequence[tuple[int, ...]], patch: int, classes: int) -> str | None:
    """Why data of these shapes, (C, H, W), and this number of classes do not fit, as a sentence; None if they do."""
    if [shape for shape in shapes if shape[1] != shape[2]] or len(shapes) > 1:
        _, height, width = next((shape for shape in shapes if shape[1] != shape[2]), shapes[-1])
        several = "one size" if len(shapes) > 1 else "squares"
        return (
            f"field.kind dit draws {several} only, and there are pictures of {width} x {height}: use field.kind jit "
            "or unet, or one number as data.size and no data.buckets"
        )
    if classes > FREE:
        return f"field.kind dit knows {FREE:,} classes at most, and the data have {classes:,}: use field.kind jit"
    return patch_problem(shapes, patch)


class DiTField(nn.Module):
    """Velocity of square pictures in [-1, 1], held by a stock DiTTransformer2DModel.

    Args:
        transformer: The network, in diffusers' convention; `new_dit` or `pretrained_dit` make one.
        num_classes: Number of classes; 0 makes the field unconditional.
        gradient_checkpointing: Compute activations again in the backward pass: slower, far less memory.
        predicts: "v", or "x" for a network that predicts the data.
    """

    exports = "transformer"
    """The attribute that holds the network of a stock diffusers pipeline."""

    def __init__(
        self,
        transformer: DiTTransformer2DModel,
        num_classes: int = 0,
        gradient_checkpointing: bool = False,
        predicts: str = "v",
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.num_classes = num_classes
        self.predicts = predicts
        tables = [f"transformer_blocks.{number}.norm1.emb.class_embedder" for number in range(len(self._blocks))]
        self.edges = tuple(f"transformer.{name}" for name in ("pos_embed", "proj_out_2", *tables))
        """Modules whose weights do not map hidden units to hidden units."""
        # the end of the network uses the embeddings of the first block again, which so stays with the rest
        self.gathered = tuple(f"transformer.transformer_blocks.{number}" for number in range(1, len(self._blocks)))
        """Modules whose weights are gathered together where the field is sharded."""
        for block in self._blocks:
            # in training each block would drop labels by itself, by random numbers of its own; the objective does
            block.norm1.emb.class_embedder.dropout_prob = 0.0
        self.ids: Tensor
        self.register_buffer("ids", torch.tensor([*range(num_classes), FREE]), persistent=False)
        if gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()

    @property
    def _blocks(self) -> Any:
        return self.transformer.transformer_blocks

    def forward(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """Velocity at x and t.

        Args:
            x: Pictures on the way from noise to data, shape (B, C, S, S).
            t: Flow times in [0, 1], shape (B,); 0 is noise, 1 is data.
            cond: Its label, shape (B,), is used; absent, it is "no class" for all.

        Returns:
            Velocity, shape (B, C, S, S), in data units per unit of t.
        """
        rows = self.ids[class_rows(cond if self.num_classes else None, len(x), self.num_classes, x.device)]
        output = self.transformer(x, timestep=1000 * (1 - t), class_labels=rows).sample
        return velocity_of_data(output, x, t) if self.predicts == "x" else -output


def new_dit(
    shape: tuple[int, ...],
    width: int = 384,
    depth: int = 12,
    heads: int = 6,
    patch: int = 2,
    dropout: float = 0.0,
    zero_output: bool = True,
) -> DiTTransformer2DModel:
    """A network with new weights.

    Args:
        shape: Channels, and twice the side of the pictures.
        width: Numbers a token, a multiple of 4 and of `heads`.
        depth: Blocks.
        heads: Attention heads.
        patch: Pixels a side of a patch.
        dropout: Dropout in the blocks.
        zero_output: Every block starts as the identity, and the output as 0.
    """
    network = DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=width // heads,
        in_channels=shape[0],
        out_channels=shape[0],
        num_layers=depth,
        dropout=dropout,
        sample_size=shape[1],
        patch_size=patch,
        num_embeds_ada_norm=FREE,
    )
    for block in network.transformer_blocks:
        nn.init.normal_(block.norm1.emb.class_embedder.embedding_table.weight, std=0.02)
    if zero_output:
        modulations = [block.norm1.linear for block in network.transformer_blocks]
        for layer in (*modulations, network.proj_out_1, network.proj_out_2):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    return network


def pretrained_dit(
    source: str, shape: tuple[int, ...], dropout: float = 0.0, predicts: str = "v"
) -> DiTTransformer2DModel:
    """A network with the weights of a stock DiTTransformer2DModel.

    Args:
        source: A folder, or an id of the hub, with the network itself or, in its folder `transformer`, a pipeline's.
        shape: Channels, and twice the side of the pictures.
        dropout: Dropout in the blocks.
        predicts: "v" or "x"; a pipeline in a folder says what its network predicts, and is refused if it differs.
    Raises:
        OSError: If there is no such network, in safetensors.
        ValueError: If it does not fit the pictures; the message says why.
    """
    stock = stock_network(DiTTransformer2DModel, source, "transformer")
    old = stock.config
    given = old["out_channels"] or old["in_channels"]
    if old["in_channels"] != shape[0] or given != shape[0]:
        raise ValueError(
            f"{source} turns {old['in_channels']} channels into {given}, and the pictures have {shape[0]}: see "
            "data.channels"
        )
    if old["num_embeds_ada_norm"] != FREE:
        raise ValueError(f"{source} has a table of {old['num_embeds_ada_norm']} classes, and a DiTPipeline has {FREE}")
    if any(side % old["patch_size"] for side in shape[1:]):
        raise ValueError(
            f"{source} has patches of {old['patch_size']} pixels, which pictures of {shape[2]} x {shape[1]} cannot be "
            "cut into: see data.size"
        )
    if (there := _predicted(source)) not in (None, predicts):
        raise ValueError(f"{source} predicts {there}: give field.output {there}")
    return with_changes(stock, {"sample_size": shape[1], "dropout": dropout}, "new.")


def _predicted(source: str) -> str | None:
    """What the network of a pipeline in a folder predicts, by its scheduler; None where nothing says so."""
    file = on_disk(source) / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        return None
    return "x" if json.loads(file.read_text(encoding="utf-8")).get("prediction_type") == "sample" else "v"
