"""Memory and step time of data-parallel training on many GPUs: a formula, not a measurement.

N GPUs, in nodes of n, train a field of P numbers in L blocks of equal size. Groups of k GPUs share one copy of weights,
gradients, optimiser and averages, so there are N / k copies. A step has m micro-batches; each computes for F seconds
forward and B seconds backward, f = F / L and b = B / L for a block.

    bytes   4 P / k weights, 4 P / k gradients, 8 P / k optimiser, 4 P / k for each average
    k = 1   c P for the rounded weights that autograd keeps; gradients are views of DDP's buckets
    k > 1   (4 + c) P gathered weights if kept between the passes, else those of two blocks; 24 P / L in transit

    T = [m (g + L max(f, g)) + (m - 1) L max(b, g') + L max(b, g' + s, a) + s + a] (1 + j(N))
    E = m (F + B) / T

    g   seconds to gather a block's weights, w bytes each:       w P / L (k - 1) / k / R + h
    g'  g where weights are dropped after the forward pass, 0 where they are kept
    s   seconds to reduce and scatter its gradients, in fp32:    4 P / L (k - 1) / k / R + h
    a   seconds to add them up over the copies:                  2 (4 P / L / k) (1 - k / N) / A + 2 t
    R   bytes per second of a ring over k GPUs: u I inside a node, u min(I, n X) over several
    A   the same between copies: u I if all N are in one node, else u min(I, X max(1, n / k))
        (g and s are for rings: `Links` may say that theirs take longer)
    h   latency of that ring: its k - 1 hops;    t: of a tree over N / k copies, log2 of that number of hops
    j   what stragglers and kernels beside copies cost: 0.5, 2 and 4 % at 8, 64 and 512, calibrated (docs/scale.md)

I and X are the rates of a GPU's link inside a node and of its network card, each way; u is the share of a rate that is
reached. With k = 1 (DDP) nothing is gathered, and a block is a bucket of 25 MiB. The time of the optimiser is part of T
only where it was measured with F and B.
"""

import math
from typing import NamedTuple

GIB = 2**30
FP32 = 4
"""Bytes of a number in weights, gradients, averages, and in each of AdamW's two moments."""
BUCKET = 25 * 2**20
"""Bytes in a bucket of DDP's gradients: torch's default."""
IN_FLIGHT = 2
"""Blocks whose weights or gradients are on the GPU while one of them computes."""
TRANSIT = 3 * FP32
"""Bytes per number of a block in flight: the buffer of its gather, its whole gradient, the buffer of its scatter."""
STRAGGLING = (0.0, 0.005, 0.02, 0.04)
"""j at 1, 8, 64 and 512 processes."""


class Links(NamedTuple):
    """How GPUs are joined: bytes per second of a GPU each way, GPUs in a node, seconds of a hop."""

    inside: float
    between: float
    node: int = 8
    hop_inside: float = 1.5e-6
    hop_between: float = 8e-6
    reached: float = 0.8
    """u, the share of a rate that is reached: an assumption."""
    gathers: float = 1.0
    scatters: float = 1.0
    """Times as long as a ring takes: a gather, and a reduce-scatter, which with gloo adds up everything everywhere."""


class GPU(NamedTuple):
    """A kind of GPU by its data sheet: dense FLOP per second in bf16 and fp32, GiB of memory, links of its nodes."""

    bf16: float
    fp32: float
    memory: int
    links: Links


GPUS = {
    # NVIDIA H100 SXM data sheet: 989 and 67 TFLOP/s, 80 GB, NVLink 900 GB/s both ways; DGX H100: a 400 Gbit/s NIC a GPU
    "h100": GPU(989e12, 67e12, 80, Links(450e9, 50e9)),
    # NVIDIA H200 data sheet: as H100, with 141 GB; `nvidia-smi` shows 140 GiB
    "h200": GPU(989e12, 67e12, 140, Links(450e9, 50e9)),
    # NVIDIA A100 80GB SXM data sheet: 312 and 19.5 TFLOP/s, NVLink 600 GB/s; DGX A100: a 200 Gbit/s NIC a GPU
    "a100": GPU(312e12, 19.5e12, 80, Links(300e9, 25e9)),
}
"""Kinds of GPU, in nodes of eight. fp32 is without TF32, as flowimg computes."""

REACHED = {"a U-Net of 36 M parameters": (35_746_307, 0.20), "a U-Net of 67 M parameters": (66_622_979, 0.27)}
"""Networks measured on an H100: parameters, and the share of its 989 TFLOP/s that a step reached (docs/scale.md)."""


class Work(NamedTuple):
    """What each GPU computes and holds: the symbols of the head of this file.

    `averages` counts the EMA and the power averages; `gather` is w; `casts` is c, 0 in fp32; `recomputes` says that
    blocks are computed again in the backward pass, so that autograd keeps no rounded weights.
    """

    numbers: int
    blocks: int = 1
    forward: float = 0.0
    backward: float = 0.0
    micro_batches: int = 1
    averages: int = 1
    gather: int = FP32
    casts: int = 2
    recomputes: bool = False


class Memory(NamedTuple):
    """Bytes on a GPU, without activations."""

    weights: float
    gradients: float
    optimiser: float
    averages: float
    copies: float
    """Gathered weights, rounded weights, and what is in transit."""
    whole: float
    """A whole average, gathered to draw samples, evaluate or draw figures; not during a step."""

    @property
    def state(self) -> float:
        """What is there at all times."""
        return self.weights + self.gradients + self.optimiser + self.averages

    def peak(self, activations: float) -> float:
        """The most that is there at once: in a step, or while a whole average is used."""
        return self.state + max(self.copies + activations, self.whole)


def ways(processes: int, node: int = 8) -> list[int]:
    """The reasonable numbers of GPUs that share a copy: 1 (DDP), one node, all."""
    return sorted({1, processes, *([node] if processes % node == 0 else [])})


def memory_of(work: Work, shard: int, kept: bool) -> Memory:
    """Bytes on each GPU where groups of `shard` share a copy, and gathered weights are kept or dropped."""
    whole, part = FP32 * work.numbers, FP32 * work.numbers / shard
    flying = min(IN_FLIGHT / work.blocks, 1) * work.numbers
    if shard == 1:
        return Memory(part, part, 2 * part, work.averages * part, work.casts * work.numbers, 0.0)
    casts = work.casts * (flying if work.recomputes and not kept else work.numbers)
    copies = FP32 * (work.numbers if kept else flying) + casts + TRANSIT * flying
    gradients = part if work.micro_batches == 1 else whole  # micro-batches add them up before they are scattered
    return Memory(part, gradients, 2 * part, work.averages * part, copies, whole)


def straggling(processes: int) -> float:
    """j(N): between its points a straight line in log N; above the last point the same line continues."""
    place = math.log(processes, 8)
    low = min(int(place + 1e-9), len(STRAGGLING) - 2)
    return STRAGGLING[low] + (place - low) * (STRAGGLING[low + 1] - STRAGGLING[low])


def step_seconds(work: Work, links: Links, processes: int, shard: int, kept: bool, overlap: bool = True) -> float:
    """T: seconds of a step. Without `overlap` nothing computes while something is sent, as on CPUs."""
    blocks = work.blocks if shard > 1 else max(1, math.ceil(FP32 * work.numbers / BUCKET))
    numbers = work.numbers / blocks
    f, b, m = work.forward / blocks, work.backward / blocks, work.micro_batches
    ring = (shard - 1) / shard / _ring_rate(links, shard)
    g = links.gathers * work.gather * numbers * ring + _ring_hops(links, shard)
    s = links.scatters * FP32 * numbers * ring + _ring_hops(links, shard)
    a = _all_reduce(links, FP32 * numbers / shard, processes, shard)
    again = 0.0 if kept else g
    if overlap:
        last = max(b, again + s, a)
        taken = m * (g + blocks * max(f, g)) + (m - 1) * blocks * max(b, again) + blocks * last + s + a
    else:
        taken = blocks * (m * (g + f + again + b) + s + a)
    return taken * (1 + straggling(processes))


def efficiency(work: Work, seconds: float) -> float:
    """E: the part of a step in which a GPU computes."""
    return work.micro_batches * (work.forward + work.backward) / seconds


def _ring_rate(links: Links, shard: int) -> float:
    """R, of a ring over a group."""
    rate = links.inside if shard <= links.node else min(links.inside, links.node * links.between)
    return links.reached * rate


def _ring_hops(links: Links, shard: int) -> float:
    """h, the latency of a ring over a group: its hops one after the other."""
    nodes = math.ceil(shard / links.node)
    between = min(nodes, shard - 1) if nodes > 1 else 0
    return between * links.hop_between + (shard - 1 - between) * links.hop_inside


def _all_reduce(links: Links, count: float, processes: int, shard: int) -> float:
    """a, of this many bytes on each GPU."""
    copies = processes // shard
    if processes <= links.node:
        rate, near = links.inside, copies
    else:
        near = max(1, links.node // shard)  # copies in a node, which share its network cards
        rate = min(links.inside, near * links.between)
    hops = math.log2(near) * links.hop_inside + math.log2(copies / near) * links.hop_between
    return 2 * count * (1 - shard / processes) / (links.reached * rate) + 2 * hops


def share_of_peak(numbers: int) -> tuple[float, str]:
    """The share of a GPU's peak assumed for a field of this size, and whose it is: the measured one nearest in size."""
    name = min(REACHED, key=lambda name: abs(math.log(REACHED[name][0] / numbers)))
    return REACHED[name][1], name
