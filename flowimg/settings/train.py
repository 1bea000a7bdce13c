"""How a field is learned: the optimiser and the loop."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from flowimg.settings.base import Fraction, Positive, Settings, one_of


class Optim(Settings):
    """What moves the weights, and its learning rate."""

    kind: Literal["adamw", "muon"] = "adamw"
    """muon moves hidden matrices by their orthogonalised momentum, and all else as adamw does."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """AdamW's decay of the averages of gradient and squared gradient."""
    momentum: Fraction = 0.95
    """Muon's decay of the average of the gradient."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps over which the rate rises."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """What the rate does after the warmup."""
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest gradient norm; null for no limit."""
    ema: Fraction = 0.999
    """Decay of the moving average of the weights, reached through a warmup."""

    @property
    def moves_matrices(self) -> bool:
        """Whether hidden matrices are moved by their orthogonalised momentum."""
        return self.kind == "muon"


class Train(Settings):
    """The loop."""

    steps: Positive = 10_000
    """Optimiser steps of the whole run."""
    stop_at: Positive | None = None
    """End early at this step, saved, with everything else as in the whole run."""
    batch_size: Positive = 512
    """Samples an optimiser step, over all processes and micro-batches."""
    accumulation: Positive = 1
    """Micro-batches a step on each process."""
    micro_batch: Annotated[Positive | Literal["auto"] | None, one_of("auto, null and a whole number above 0")] = None
    """Or: samples of a micro-batch; auto takes the most that fit the memory. The batch stays, the rest accumulates."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the network; all else stays fp32. auto: bf16 for U-Nets on what is fast in it. fp16 needs a GPU."""
    compile: Annotated[bool | Literal["auto", "graphs"], one_of("true, false, auto and graphs")] = "auto"
    """Compile field and loss; graphs: as CUDA graphs. auto: 2,000 steps and more on a GPU, in graphs on NVIDIA's."""
    label_drop: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of labels replaced by "no class", which guidance needs."""
    log_every: Positive = 100
    """Steps between lines of metrics.jsonl."""
    held_out_every: Positive | None = None
    """Steps between the lines that also tell the held-out losses; by default such that these cost 2 % of the time."""
    sample_every: Positive = 1000
    """Steps between sample grids."""
    evaluate_every: Positive | None = None
    """Steps between evaluations of the averaged field; null for none while training."""
    evaluate_count: Annotated[int, Field(ge=2)] = 1000
    """Samples of each, drawn as those of the grid are."""
    evaluate_features: Annotated[str, Field(min_length=1)] = "proxy"
    """What they are compared in; see --features of flowimg evaluate."""
    checkpoint_every: Positive = 1000
    """Steps between checkpoints."""
    keep: Annotated[int, Field(ge=2)] = 3
    """The newest checkpoints, so many, are kept."""
    keep_every: Positive | None = None
    """Those at a multiple of so many steps are kept as well."""
    keep_best: Literal["loss", "held_out_loss", "held_out_loss_ema"] | None = None
    """The checkpoint with the lowest of this metric is kept as well."""
    snapshots: Annotated[int, Field(ge=0)] = 0
    """So many times over the run, two more averages are kept aside, of which --weights LENGTH makes others; 0: none."""
    max_skips: Positive = 10
    """Steps in a row whose loss or gradient is not finite that end the run; fewer are skipped and counted."""

    @model_validator(mode="after")
    def _cut(self) -> "Train":
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size {self.batch_size} does not divide by accumulation {self.accumulation}")
        if self.micro_batch is not None and self.accumulation != 1:
            raise ValueError(f"micro_batch {self.micro_batch} and accumulation {self.accumulation}: give one of them")
        if self.keep_best and self.checkpoint_every % self.log_every:
            raise ValueError(
                f"keep_best needs metrics at every checkpoint: checkpoint_every {self.checkpoint_every} is no "
                f"multiple of log_every {self.log_every}"
            )
        return self
