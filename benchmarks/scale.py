"""The tables of docs/scale.md: what `flowimg/machine/scaling.py` predicts for fields of 36 M to 8 B parameters.

    python benchmarks/scale.py [--gpu h100] [--gather 2]

The networks are counted on the meta device: two U-Nets of configs/, and diffusion transformers (blocks with attention,
an MLP four times as wide, and a scale, shift and gate from time and class). Compute is measured on an H100 for the
U-Nets (docs/results.md), and operations over an assumed share of the peak for the others. Nothing is run on a GPU.
"""

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flowimg.fields.unet import UNetField, new_unet
from flowimg.flow.condition import Condition
from flowimg.machine.counting import Counts, count
from flowimg.machine.memory import OVERHEAD, USABLE
from flowimg.machine.scaling import (
    GIB,
    GPU,
    GPUS,
    Work,
    efficiency,
    memory_of,
    step_seconds,
    straggling,
)
from flowimg.settings.field import UNet
from flowimg.settings.reading import load
from flowimg.training.sharding import keeps, units

AVERAGES = 3
"""The EMA and two power averages."""
PROCESSES = (8, 64, 512)
MORE = 32
"""Samples of another row for the largest network: what is sent for a micro-batch does not depend on its size."""
OTHERS = (
    ("torchtitan, Llama 3.1 8 B, H100", 8, 128, 97.3),
    ("the same, compiled", 8, 128, 97.7),
    ("llm-foundry, 1 B, H100", 8, 64, 97.7),
    ("llm-foundry, 13 B, H100", 8, 64, 100.2),
    ("MosaicML diffusion, SD 2, 256 px, A100", 8, 64, 96.9),
    ("the same", 8, 128, 65.9),
    ("the same, 512 px", 8, 128, 98.9),
)
"""Who, from how many GPUs to how many, and the efficiency that they measured in %; sources in docs/scale.md."""


# --- networks --------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """A block of a diffusion transformer (Peebles and Xie 2023, arXiv:2212.09748): 18 width^2 parameters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.condition = nn.Linear(width, 6 * width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        scale, shift, gate, scale_2, shift_2, gate_2 = self.condition(F.silu(c))[:, None].chunk(6, dim=-1)
        h = F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift
        q, k, v = self.qkv(h).unflatten(-1, (3, -1, 64)).permute(2, 0, 3, 1, 4)
        x = x + gate * self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        h = F.layer_norm(x, x.shape[-1:]) * (1 + scale_2) + shift_2
        return x + gate_2 * self.down(F.gelu(self.up(h), approximate="tanh"))


class Transformer(nn.Module):
    """A field on latents of 4 channels, in patches of 2 x 2."""

    gathered = ("layers",)

    def __init__(self, width: int, depth: int, recomputes: bool) -> None:
        super().__init__()
        self.recomputes = recomputes
        self.enter, self.leave = nn.Conv2d(4, width, 2, stride=2), nn.Linear(width, 16)
        self.time = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        self.layers = nn.ModuleList([Block(width) for _ in range(depth)])

    def forward(self, x: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        h, c = self.enter(x).flatten(2).transpose(1, 2), self.time(t[:, None])
        for block in self.layers:
            h = checkpoint(block, h, c, use_reentrant=False) if self.recomputes else block(h, c)
        out = self.leave(F.layer_norm(h, h.shape[-1:]))
        side = x.shape[-1] // 2
        return out.unflatten(1, (side, side)).unflatten(-1, (4, 2, 2)).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)


def unet(name: str, recomputes: bool) -> nn.Module:
    """The U-Net of a config, for colour pictures of 32 pixels a side."""
    field = load(f"configs/{name}.yaml").field
    assert isinstance(field, UNet)
    options = field.model_dump(exclude={"kind", "pretrained", "gradient_checkpointing"})
    return UNetField(new_unet(32, 3, **options), gradient_checkpointing=recomputes)


class Case(NamedTuple):
    """A row: a network, the side of its samples, samples in a micro-batch, and what is known of its speed.

    `make` builds the network, with gradient checkpointing or without. `seconds` were measured for the micro-batch on an
    H100; else `share` of the peak is assumed.
    """

    name: str
    make: Any
    shape: tuple[int, ...]
    samples: int
    share: float = 0.0
    seconds: float = 0.0


def transformer(width: int, depth: int) -> Any:
    return lambda recomputes: Transformer(width, depth, recomputes)


def cases() -> list[Case]:
    """The rows of the tables; 32 x 32 latents are 256 tokens, 64 x 64 are 1,024."""
    small, large = (4, 32, 32), (4, 64, 64)
    l_16, l_28, l_33, l_47 = (transformer(*size) for size in ((1024, 16), (1152, 28), (2048, 33), (3072, 47)))
    return [
        Case("36 M U-Net", lambda again: unet("cifar10", again), (3, 32, 32), 128, seconds=0.0241),
        Case("67 M U-Net", lambda again: unet("cifar10_large", again), (3, 32, 32), 64, seconds=0.0308),
        Case("300 M DiT", l_16, small, 32, share=0.40),
        Case("700 M DiT", l_28, small, 32, share=0.40),
        Case("2.5 B DiT", l_33, small, 16, share=0.42),
        Case("2.5 B DiT, 1,024 tokens", l_33, large, 4, share=0.42),
        Case("8 B DiT", l_47, small, 8, share=0.45),
        Case("8 B DiT, 1,024 tokens", l_47, large, 4, share=0.45),
    ]


# --- tables ----------------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """What was counted of a row: parameters, blocks, counts without and with gradient checkpointing."""

    case: Case
    numbers: int
    blocks: int
    plain: Counts
    again: Counts


def counted(case: Case) -> Found:
    """A network, counted."""
    with torch.device("meta"):
        plain, again = case.make(False), case.make(True)
    numbers = sum(p.numel() for p in plain.parameters())
    return Found(case, numbers, len(units(plain)), count(plain, case.shape, True), count(again, case.shape, True))


def work_of(found: Found, gpu: GPU, gather: int, recomputes: bool = False) -> Work:
    """A micro-batch of a row. Its operations are those without recomputing: efficiency is against these."""
    case, counts = found.case, found.plain
    seconds = case.seconds or case.samples * (counts.forward + counts.backward) / (case.share * gpu.bf16)
    forward = seconds * counts.forward / (counts.forward + counts.backward)
    return Work(
        found.numbers, found.blocks, forward, seconds - forward, averages=AVERAGES, gather=gather, recomputes=recomputes
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def counts_table(rows: Sequence[Found], gpu: GPU) -> None:
    lines = []
    for found in rows:
        case, plain = found.case, found.plain
        seconds = sum(work_of(found, gpu, 4)[2:4])
        rate = case.samples * (plain.forward + plain.backward) / seconds
        kept = (f"{counts.activations / 2**20:,.0f}" for counts in (plain, found.again))
        lines.append([
            case.name, f"{found.numbers / 1e6:,.1f}", str(found.blocks),
            f"{(plain.forward + plain.backward) / 1e9:,.0f}", *kept, str(case.samples), f"{1000 * seconds:.1f}",
            f"{100 * rate / gpu.bf16:.0f} % ({'measured' if case.seconds else 'assumed'})",
        ])  # fmt: skip
    head = ["field", "parameters, M", "blocks", "GFLOP a sample", "activations, MiB a sample", "recomputed"]
    table([*head, "samples a GPU", "compute, ms", "share of peak"], lines)


def memory_table(rows: Sequence[Found], gpu: GPU, gather: int) -> None:
    """GiB on each GPU beside activations."""
    lines = []
    for found in {found.numbers: found for found in reversed(rows)}.values():
        work = work_of(found, gpu, gather)
        again = work._replace(recomputes=True)
        ways = [(work, 1, True), (work, 8, True), (again, 8, False), (again, 64, False)]
        memories = [memory_of(*way) for way in ways]
        rule = "kept" if keeps(found.numbers, gpu.memory * GIB) else "dropped"
        gib = (f"{(memory.state + memory.copies) / GIB:.1f}" for memory in memories)
        name = found.case.name.split(",")[0]
        lines.append([name, f"{found.numbers / 1e6:,.0f}", *gib, f"{memories[-1].whole / GIB:.1f}", rule])
    head = ["field", "parameters, M", "DDP", "shard 8, kept", "shard 8, dropped"]
    table([*head, "shard 64, dropped", "a whole average", "the rule"], lines[::-1])


def speed_table(rows: Sequence[Found], gpu: GPU, gather: int) -> None:
    """Efficiency in % of one GPU's compute."""
    lines = []
    for found in rows:
        work = work_of(found, gpu, gather)

        def percent(processes: int, shard: int, kept: bool, work: Work = work) -> str:
            return f"{100 * efficiency(work, step_seconds(work, gpu.links, processes, shard, kept)):.0f}"

        ddp = memory_of(work, 1, True)
        fits = ddp.state + ddp.copies <= USABLE * gpu.memory * GIB
        dropped = percent(512, 512, False)
        lines.append([
            found.case.name, str(found.case.samples), f"{1000 * (work.forward + work.backward):.1f}",
            " / ".join(percent(n, 1, True) for n in PROCESSES) if fits else "does not fit",
            " / ".join(percent(n, n, True) for n in PROCESSES), dropped,
            " / ".join(percent(n, 8, True) for n in PROCESSES), " / ".join(percent(n, 8, False) for n in PROCESSES),
        ])  # fmt: skip
    head = ["field", "samples", "compute, ms", "DDP 8 / 64 / 512", "all, kept", "all, dropped, 512"]
    table([*head, "shard 8, kept", "shard 8, dropped"], lines)


def choice_table(rows: Sequence[Found], gpu: GPU, gather: int) -> None:
    """The simplest way that fits on 64 GPUs: DDP, one copy a node, that with gradient checkpointing."""
    lines = []
    for found in rows:
        plain, again = (work_of(found, gpu, gather, recomputes) for recomputes in (False, True))
        kept = keeps(found.numbers, gpu.memory * GIB)
        ways = [("DDP", plain, 1), ("shard 8", plain, 8), ("shard 8, checkpointing", again, 8)]
        for way, work, shard in ways:  # noqa: B007  the last one is shown where none fits
            counts = found.again if work.recomputes else found.plain
            memory, activations = memory_of(work, shard, kept), found.case.samples * counts.activations * OVERHEAD
            if memory.peak(activations) <= USABLE * gpu.memory * GIB:
                break
        gathered = "" if shard == 1 else "kept" if kept else "dropped"
        percents = (efficiency(work, step_seconds(work, gpu.links, n, shard, kept)) for n in PROCESSES)
        lines.append([
            found.case.name, str(found.case.samples), way, gathered, f"{(memory.state + memory.copies) / GIB:.1f}",
            f"{activations / GIB:.1f}", " / ".join(f"{100 * percent:.0f}" for percent in percents),
        ])  # fmt: skip
    head = ["field", "samples a GPU", "choose", "gathered weights", "state, GiB", "activations, GiB"]
    table([*head, "efficiency on 8 / 64 / 512"], lines)


def others_table() -> None:
    lines = []
    for name, few, many, measured in OTHERS:
        predicted = 100 * (1 + straggling(few)) / (1 + straggling(many))
        lines.append([name, f"{few} -> {many}", f"{measured} %", f"{predicted:.1f} %"])
    table(["who", "GPUs", "measured", "predicted"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--gpu", choices=list(GPUS), default="h100")
    told = "bytes a number when weights are gathered: 4 (default), 2 in bf16, which flowimg does not do"
    parser.add_argument("--gather", type=int, choices=(2, 4), default=4, help=told)
    given = parser.parse_args()
    gpu, rows = GPUS[given.gpu], [counted(case) for case in cases()]
    print(f"torch {torch.__version__}; weights gathered with {given.gather} bytes a number; {given.gpu}")
    counts_table(rows, gpu)
    memory_table(rows, gpu, given.gather)
    large = next(found for found in rows if found.case.name == "8 B DiT")
    rows.append(large._replace(case=large.case._replace(name="8 B DiT, more samples", samples=MORE)))
    speed_table(rows, gpu, given.gather)
    choice_table(rows, gpu, given.gather)
    others_table()


if __name__ == "__main__":
    main()
