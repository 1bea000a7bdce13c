"""Before the first step: the processes of a launch, checked against the settings, and how a batch is cut for them."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn

from flowimg.build.data import cache_of
from flowimg.build.flow import SCHEDULES
from flowimg.data.batches import Batches
from flowimg.errors import MachineError, SettingsError
from flowimg.flow.objectives import Objective
from flowimg.jobs.train.trackers import check_tracker
from flowimg.machine.compiling import compiler_options
from flowimg.machine.device import pick_device
from flowimg.machine.memory import find_micro_batch
from flowimg.machine.precision import fast_in_bf16, settle_precision, settle_tf32
from flowimg.machine.processes import PATIENCE, check_launch, get_ready, meeting_place
from flowimg.machine.scaling import FP32, Work, memory_of
from flowimg.runs.folder import RunFolder
from flowimg.settings.reading import load
from flowimg.settings.run import Config
from flowimg.training.averages import LENGTHS
from flowimg.training.sharding import units
from flowimg.training.state import Recipe
from flowimg.training.strategies import Strategy

OTHERS = {"FSDP": "FSDP", "DEEPSPEED": "DeepSpeed", "MEGATRON_LM": "Megatron-LM"}
"""Strategies that a launcher may request, by its variable ACCELERATE_USE_..., and this loop does not have."""


def settled(config: Config) -> Config:
    """The same run with its precision settled: by the run, if it was begun before, else by the device."""
    file = RunFolder(Path(str(config.run))).config
    asked = config.train.precision
    if asked == "auto" and file.exists():
        asked = load(str(file)).train.precision
    train = config.train.model_copy(update={"precision": settle_precision(asked, config.field.fast_in_bf16)})
    return config.model_copy(update={"train": train})


def open_accelerator(config: Config) -> Accelerator:
    """The processes and their devices, checked against the launch and the settings."""
    if config.train.precision == "fp16" and pick_device().type != "cuda":
        raise MachineError("train.precision fp16 needs a GPU: use bf16 or fp32 on this machine")
    asked = [OTHERS[key] for key in OTHERS if os.environ.get(f"ACCELERATE_USE_{key}", "").lower() in ("1", "true")]
    if asked:
        raise MachineError(
            f"the launcher asks for {asked[0]}, which flowimg does not use: launch with --multi_gpu, or answer no "
            "to it in `accelerate config`, and give train.shard, which shards a model by a setting of the run"
        )
    check_tracker(config)
    get_ready()
    settle_tf32(config.train.precision)
    # torch 2.15 has a new name for broadcast_buffers; the older ones that we run on do not know it
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    # accelerate holds on to the first precision asked for in a process; a notebook may train twice
    AcceleratorState._reset_state()
    # the buffers of our fields are constants; sending them every step would be waste
    # gradients lie in the buckets that are summed, and not twice
    how_ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    handlers = [how_ddp, InitProcessGroupKwargs(timeout=PATIENCE, init_method=meeting_place())]
    accelerator = Accelerator(
        mixed_precision={"fp32": "no"}.get(config.train.precision, config.train.precision),
        dynamo_backend="no",
        log_with=config.track,
        project_dir=f"{config.run}/tracking" if config.track else None,
        kwargs_handlers=handlers,
    )
    processes, train = accelerator.num_processes, config.train
    check_launch(processes, "train")
    each = train.micro_batch if isinstance(train.micro_batch, int) else train.accumulation
    if train.batch_size % (processes * each):
        pieces = f"{each} micro-batches" if each == train.accumulation else f"micro-batches of {each}"
        raise SettingsError(
            f"train.batch_size {train.batch_size} does not divide over {processes} processes times {pieces}: "
            f"use a multiple of {processes * each}"
        )
    return accelerator


def launcher_differs(config: Config) -> list[str]:
    """Where the launcher's options differ from the run's settings, which win: a run is described by its folder."""
    train, variable = config.train, os.environ.get
    cut = str(train.accumulation) if train.micro_batch is None else "by micro_batch"
    asked = [
        ("mixed precision", variable("ACCELERATE_MIXED_PRECISION", "no"), "train.precision", train.precision),
        ("gradient accumulation", variable("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1"), "train.accumulation", cut),
        ("torch.compile by", variable("ACCELERATE_DYNAMO_BACKEND", "no").lower(), "none", "no"),
    ]
    return [
        f"the launcher asks for {what} {there}; the run's settings win: {name} {here}"
        for what, there, name, here in asked
        if there not in ("no", "1", "", here)  # the first three are the launcher's own defaults
    ]


def slow_precision(config: Config) -> list[str]:
    """Whether the requested bf16 is slow on this device: CPUs emulate what they have no hardware for."""
    device = pick_device()
    if config.train.precision != "bf16" or fast_in_bf16(device):
        return []
    return [f"bf16 is slow on this {device.type}, a step may take ten times as long: --train.precision auto avoids it"]


def options_of(config: Config, processes: int) -> dict[str, bool] | None:
    """How a training step is compiled, by the settings; None where it is not."""
    convolutions = config.field.has_cpu_blocks and config.train.precision != "fp32"
    train = config.train
    # blocks whose weights come and go were never compiled on several GPUs: only who asks for it has it
    sharded = train.shard != 1 and processes > 1
    asked = False if train.compile == "auto" and (sharded or train.offload) else train.compile
    return compiler_options(asked, config.train.steps, processes, cache_of(config), convolutions)


def cut(config: Config, strategy: Strategy, field: nn.Module, objective: Objective, data: Batches) -> tuple[int, int]:
    """How each process cuts its share of the batch: the size of a micro-batch, and how many there are."""
    share, size = config.train.batch_size // strategy.processes, config.train.micro_batch
    if size is None:
        return share // config.train.accumulation, config.train.accumulation
    if size == "auto":
        loss, weights = forward(strategy, field, objective, data), FP32 * work_of(config, field).numbers
        one, several = (sum(held_bytes(config, strategy, field, number).values()) - weights for number in (1, 2))
        # a pass through the whole field, as here, takes more memory than one where it is cut over processes
        own = find_micro_batch(field, loss, share, one, tried=strategy.shard == 1)
        if own < share and several > one:
            own = find_micro_batch(field, loss, share, several, tried=False)
        size = int(strategy.gather_rows(torch.tensor([own], device=strategy.device)).min())
    return size, share // size


def work_of(config: Config, field: nn.Module, bf16: bool = False) -> Work:
    """What decides how much memory a run takes beside its activations; how long it computes is not known yet."""
    return Work(
        sum(p.numel() for p in field.parameters()),
        len(units(field)),
        micro_batches=config.train.accumulation,
        averages=1 + len(lengths_of(config)),
        casts=2 if bf16 else 0,
        recomputes=bool(getattr(config.field, "gradient_checkpointing", False)),
    )


def held_bytes(config: Config, strategy: Strategy, field: nn.Module, micro_batches: int) -> dict[str, int]:
    """Bytes that a run holds on each process beside what a pass stores, by name; all processes call it together."""
    work = work_of(config, field)._replace(micro_batches=micro_batches)
    held = memory_of(work, strategy.shard, strategy.keeps(work.numbers))._asdict()
    return {name: round(count) for name, count in held.items() if count and name != "whole"}


def forward(strategy: Strategy, field: nn.Module, objective: Objective, data: Batches) -> Callable[[int], Tensor]:
    """Number of samples to their mean loss, in the precision of the run, as the first step of the largest sees them."""

    def loss(size: int) -> Tensor:
        draw = objective.draw(data, data.largest, range(size))
        with strategy.autocast():
            return objective.loss(field, draw).mean()

    return loss


def lengths_of(config: Config) -> tuple[float, ...]:
    """The power averages that a run keeps, by their lengths."""
    return LENGTHS if config.train.snapshots else ()


def recipe_of(config: Config, accumulation: int) -> Recipe:
    """How the optimiser moves, by the settings."""
    train, optim = config.train, config.optim
    return Recipe(
        steps=train.steps,
        accumulation=accumulation,
        lr=optim.lr,
        betas=optim.betas,
        weight_decay=optim.weight_decay,
        momentum=optim.momentum if optim.moves_matrices else None,
        warmup=optim.warmup,
        schedule=SCHEDULES[optim.schedule],
        clip=optim.clip,
        ema=optim.ema,
        max_skips=train.max_skips,
        lengths=lengths_of(config),
    )
