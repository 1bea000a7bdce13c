"""How a network is trained: the optimiser and the loop."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from flowimg.settings.base import SEEDS, Fraction, Positive, Settings, Unit, one_of


class Optim(Settings):
    """The optimiser, and its learning rate."""

    kind: Literal["adamw", "muon"] = "adamw"
    """muon updates hidden matrices by their orthogonalised momentum, and all other weights like adamw."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay per step of AdamW's averages of the gradient and of its square."""
    momentum: Fraction = 0.95
    """Decay per step of Muon's average of the gradient."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Number of steps over which the learning rate rises."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """Learning rate after the warmup: constant, or falling to 0 by a cosine or linearly."""
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Clip the gradient to this norm; null for no limit."""
    ema: Fraction = 0.999
    """Decay per step of the moving average of the weights; smaller at the start of the run."""

    @property
    def moves_matrices(self) -> bool:
        """Whether hidden matrices are updated by their orthogonalised momentum."""
        return self.kind == "muon"


class Train(Settings):
    """The training loop."""

    steps: Positive = 10_000
    """Optimiser steps of the whole run."""
    stop_at: Positive | None = None
    """Save and stop at this step; schedules still follow train.steps, so that the run can continue later."""
    batch_size: Positive = 512
    """Examples per optimiser step, over all processes and micro-batches."""
    accumulation: Positive = 1
    """Number of micro-batches per step on each process."""
    micro_batch: Annotated[Positive | Literal["auto"] | None, one_of("auto, null and a whole number above 0")] = None
    """Instead of accumulation: examples per micro-batch; auto takes as many as fit the memory. batch_size stays."""
    shard: Annotated[Positive | Literal["all"], one_of("all and a whole number above 0")] = 1
    """Number of processes that share one copy of weights, gradients, optimiser and averages; 8 on nodes of 8 GPUs."""
    offload: bool = False
    """Keep what the backward pass needs in the host's memory meanwhile: slower, and less of a GPU's memory."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the network; the rest stays fp32. auto: bf16 for images where bf16 is fast. fp16 needs a GPU."""
    compile: Annotated[bool | Literal["auto", "graphs"], one_of("true, false, auto and graphs")] = "auto"
    """Compile network and loss; graphs: as CUDA graphs. auto: on GPUs, from 2,000 steps on; NVIDIA's with graphs."""
    label_drop: Unit = 0.1
    """Fraction of labels replaced by "no class", which guidance needs."""
    log_every: Positive = 100
    """Steps between lines of metrics.jsonl."""
    held_out_every: Positive | None = None
    """Steps between held-out losses in metrics.jsonl; by default chosen so that they take 2 % of the time."""
    sample_every: Positive = 1000
    """Steps between sample grids."""
    evaluate_every: Positive | None = None
    """Steps between evaluations of the averaged weights; null for no evaluation during training."""
    evaluate_count: Annotated[int, Field(ge=2, le=SEEDS)] = 1000
    """Samples per evaluation, drawn with the solver settings of the grid."""
    evaluate_features: Annotated[str, Field(min_length=1)] = "proxy"
    """Features of these evaluations; see --features of flowimg evaluate."""
    checkpoint_every: Positive = 1000
    """Steps between checkpoints."""
    keep: Annotated[int, Field(ge=2)] = 3
    """Number of newest checkpoints to keep."""
    keep_every: Positive | None = None
    """Also keep the checkpoints at multiples of this step."""
    keep_best: Literal["loss", "held_out_loss", "held_out_loss_ema"] | None = None
    """Also keep the checkpoint where this metric is lowest."""
    snapshots: Annotated[int, Field(ge=0)] = 0
    """Number of snapshots for post-hoc averages of the weights (flowimg ema, --weights LENGTH), spread over the run."""
    max_skips: Positive = 10
    """Stop after this many steps in a row with NaN or inf in loss or gradient; fewer are skipped and counted."""

    @model_validator(mode="after")
    def _fits(self) -> "Train":
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size {self.batch_size} does not divide by accumulation {self.accumulation}")
        if self.shard != 1 and self.precision == "fp16":
            raise ValueError(
                f"shard {self.shard} and precision fp16: each process would scale its gradients; give bf16"
            )
        if self.shard != 1 and self.compile == "graphs":
            raise ValueError(
                f"shard {self.shard} and compile graphs: no graph can hold the gathered weights; give false"
            )
        if self.offload and self.compile not in ("auto", False):
            raise ValueError(f"offload and compile {str(self.compile).lower()}: give one of them")
        if self.offload and self.micro_batch == "auto":
            raise ValueError("offload and micro_batch auto, which measures what the GPU holds: give a number")
        if self.micro_batch is not None and self.accumulation != 1:
            raise ValueError(f"micro_batch {self.micro_batch} and accumulation {self.accumulation}: give one of them")
        if self.keep_best and self.checkpoint_every % self.log_every:
            at, of = self.checkpoint_every, self.log_every
            raise ValueError(f"keep_best needs checkpoint_every {at} to be a multiple of log_every {of}")
        return self
