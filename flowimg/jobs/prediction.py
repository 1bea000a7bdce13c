"""What a run needs on many GPUs: `flowimg estimate CONFIG --processes 8 64 512 --gpu h100`.

The network is counted, not run, and `machine.scaling` computes the rest. A step is measured only on a machine that has
that kind of GPU.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from flowimg.build.data import build_source
from flowimg.build.facts import DataFacts, FoundData
from flowimg.build.field import build_field
from flowimg.build.flow import build_objective
from flowimg.build.strategy import strategy_of
from flowimg.jobs.estimate import measured_step
from flowimg.jobs.train.launch import open_accelerator, options_of, recipe_of, settled, work_of
from flowimg.machine.counting import Counts, count
from flowimg.machine.memory import OVERHEAD, USABLE
from flowimg.machine.scaling import (
    GIB,
    GPU,
    GPUS,
    Work,
    efficiency,
    memory_of,
    share_of_peak,
    step_seconds,
    ways,
)
from flowimg.runs.folder import RunFolder
from flowimg.runs.places import located
from flowimg.settings.run import Config
from flowimg.settings.verbs import Estimate
from flowimg.training.sharding import keeps
from flowimg.training.state import start

CLOSE = 0.01
"""Ways to share whose efficiency is within this of the best one count as equal: the simplest of them is chosen."""


class Case(NamedTuple):
    """A network on a kind of GPU, for any number of GPUs.

    `work` is that of one sample; `activations` are the bytes that each sample in a micro-batch needs at the peak;
    `sizes` are the micro-batches that may be used, the largest first.
    """

    gpu: GPU
    work: Work
    activations: float
    sizes: list[int]
    samples: int


def predict(config: Config, asked: Estimate) -> dict[str, Any]:
    """Print memory, step time and efficiency on each number of GPUs, for each way to share the run's state.

    Returns:
        What was counted, and a row for each number of GPUs and each way to share.
    """
    config = located(config, RunFolder(Path(str(config.run))))
    source = build_source(config)
    gpu, field = GPUS[asked.gpu], empty_field(config, source.facts)
    bf16 = config.train.precision in ("bf16", "fp16") or (
        config.train.precision == "auto" and config.field.fast_in_bf16
    )
    counts, numbers = count(field, source.facts.shape, bf16), sum(p.numel() for p in field.parameters())
    peak = gpu.bf16 if bf16 else gpu.fp32
    share, whose = share_of_peak(numbers)
    reached = peak * (asked.share or share)
    work = work_of(config, field, bf16)._replace(
        forward=counts.forward / reached, backward=counts.backward / reached, micro_batches=1
    )
    samples = asked.samples or config.train.batch_size
    case = Case(gpu, work, OVERHEAD * counts.activations, _sizes(config, samples), samples)
    how = "as given" if asked.share else f"which {whose} reached on an h100; --share sets another"
    how = f"{100 * (asked.share or share):.3g} % of {peak / 1e12:g} TFLOP/s in {'bf16' if bf16 else 'fp32'}, {how}"
    if not asked.share and _is_here(asked.gpu) and (row := _row(case, 2, 1))["fits"]:
        seconds = _measured(config, source, row["micro_batch"], max(asked.processes))
        longer = seconds / (work.forward + work.backward)
        work = work._replace(forward=work.forward * longer, backward=work.backward * longer)
        case, how = case._replace(work=work), "measured here, with the optimiser"
    rows = [_row(case, processes, k) for processes in asked.processes for k in ways(processes, gpu.links.node)]
    _choose(rows)
    _show(source.story, case, counts, how, asked.gpu, rows)
    return {
        "parameters": numbers,
        "flops_per_sample": counts.forward + counts.backward,
        "activation_bytes_per_sample": counts.activations,
        "compute_seconds": samples * (work.forward + work.backward),
        "rows": rows,
    }


def empty_field(config: Config, facts: DataFacts) -> nn.Module:
    """The network of a run on the meta device, which holds no weights."""
    if getattr(config.field, "pretrained", None):  # its file says what it is
        return build_field(config, facts).to("meta")
    with torch.device("meta"):
        return build_field(config, facts)


def _sizes(config: Config, samples: int) -> list[int]:
    """Micro-batches that cut a GPU's samples into equal parts, none larger than the settings allow; largest first."""
    train = config.train
    most = train.micro_batch if isinstance(train.micro_batch, int) else samples // train.accumulation
    return [size for size in range(min(most, samples), 0, -1) if samples % size == 0] or [1]


def _row(case: Case, processes: int, shard: int) -> dict[str, Any]:
    """What each GPU needs where `shard` of `processes` share a copy, in the largest micro-batch that fits."""
    total = case.gpu.memory * GIB
    kept = keeps(case.work.numbers, total)
    for size in case.sizes:
        work, one = case.work, case.samples // size
        work = work._replace(forward=size * work.forward, backward=size * work.backward, micro_batches=one)
        memory, activations = memory_of(work, shard, kept), case.activations * size
        if fits := memory.peak(activations) <= USABLE * total:
            break
    seconds = step_seconds(work, case.gpu.links, processes, shard, kept)
    return {
        "processes": processes,
        "shard": shard,
        "gathered": None if shard == 1 else "kept" if kept else "dropped",
        "micro_batch": size,
        "accumulation": one,
        "memory_bytes": {**memory._asdict(), "activations": activations, "peak": memory.peak(activations)},
        "fits": fits,
        "step_seconds": seconds,
        "samples_per_second": processes * case.samples / seconds,
        "efficiency": efficiency(work, seconds),
        "chosen": False,
    }


def _choose(rows: list[dict[str, Any]]) -> None:
    """Mark the way to choose for each number of GPUs: DDP where it fits, else the fewest that share without a loss."""
    for processes in {row["processes"] for row in rows}:
        fit = [row for row in rows if row["processes"] == processes and row["fits"]]
        best = max((row["efficiency"] for row in fit), default=0)
        for row in fit:
            if row["shard"] == 1 or row["efficiency"] >= best - CLOSE:
                row["chosen"] = True
                break


def _is_here(name: str) -> bool:
    """Whether this machine has that kind of GPU."""
    return torch.cuda.is_available() and name in torch.cuda.get_device_name().lower()


def _measured(config: Config, source: FoundData, size: int, processes: int) -> float:
    """Seconds for each sample of a step of this size on this GPU, compiled as for this number of processes."""
    more = {"batch_size": size, "accumulation": 1, "micro_batch": None, "shard": 1, "offload": False}
    train = config.train.model_copy(update=more)
    config = settled(config.model_copy(update={"train": train}))
    strategy = strategy_of(open_accelerator(config), config.train.shard)
    field, objective = build_field(config, source.facts), build_objective(config)
    data, options = source.load(strategy.device), options_of(config, processes)
    return measured_step(start(strategy, field, objective, data, recipe_of(config, 1), options)) / size


def _show(story: str, case: Case, counts: Counts, how: str, gpu: str, rows: list[dict[str, Any]]) -> None:
    """Print what was counted, a line for each row, and what they are not."""
    work, samples = case.work, case.samples
    blocks = "one block" if work.blocks == 1 else f"{work.blocks} blocks"
    lines = {
        "data": story,
        "field": f"{work.numbers:,} parameters in {blocks}; counted for a sample: "
        f"{(counts.forward + counts.backward) / 1e9:.3g} GFLOP forward and backward, "
        f"{counts.activations / 2**20:.3g} MiB of activations",
        "compute": f"{1000 * samples * (work.forward + work.backward):.4g} ms for {samples} samples: {how}",
        "batch": f"{samples} samples per GPU and step, so it grows with the number of GPUs; --samples sets another",
        "table": f"{gpu} with {case.gpu.memory} GiB, {case.gpu.links.node} in a node; memory per GPU in GiB",
    }
    for name, line in lines.items():
        print(f"{name:<9} {line}")
    parts = ("weights", "gradients", "optimiser", "averages", "copies", "activations", "peak")
    names = ("weights", "grads", "optim.", "averages", "copies", "activ.", "peak")
    table = [["GPUs", "shard", "gathered", "batches", *names, "fits", "step ms", "effic.", ""]]
    for row in rows:
        shared = row["shard"] if row["shard"] in (1, case.gpu.links.node) else "all"
        memory = [f"{row['memory_bytes'][part] / GIB:.2f}" for part in parts]
        last = [f"{1000 * row['step_seconds']:.4g}", f"{100 * row['efficiency']:.0f} %"]
        cells = [row["processes"], shared, row["gathered"] or "-", f"{row['accumulation']} x {row['micro_batch']}"]
        fits, word = ("yes" if row["fits"] else "no"), ("choose" if row["chosen"] else "")
        table.append([*map(str, cells), *memory, fits, *last, word])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    print()
    for entries in table:
        print("  ".join(f"{cell:>{width}}" for cell, width in zip(entries, widths, strict=True)).rstrip())
    print()
    for processes in sorted({row["processes"] for row in rows} - {row["processes"] for row in rows if row["chosen"]}):
        print(f"nothing fits on {processes} GPUs: use field.gradient_checkpointing or a smaller network")
    print("This was computed, not measured: docs/scale.md has the formula, its assumptions and its error.")
