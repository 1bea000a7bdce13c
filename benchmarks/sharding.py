"""Step time and memory of a run on several processes, for each way to share its state, beside the formula's.

    python benchmarks/sharding.py CONFIG [--processes N] [--shards 1 8 ...] [--dropped] [--KEY VALUE ...]
    python benchmarks/sharding.py CONFIG --rates 1000 300 100 [--KEY VALUE ...]        two machines; needs root

Compute is measured without communication (as many runs of one process at the same time, with a process's part of the
batch); latency and rate of an all-reduce, and how much longer than a ring of that rate a gather and a reduce-scatter
take, without computing; from these `flowimg/machine/scaling.py` predicts the step
of each `train.shard` of --shards, which is measured too. A round measures everything in turn; printed are medians over
--rounds, and the error of the prediction. Memory is compared with that of one process: of tensors on GPUs, of the whole
process on CPUs.

With --rates each of two processes runs in a network namespace of its own, and the link between them is throttled to
each of these rates in Mbit/s, 0 for no limit. On CPUs (OMP_NUM_THREADS threads in each process, by default 1) the
formula is used without overlap, and all processes are started first: those that are not measured sleep. On GPUs one way
after the other is started; give --train.compile true there, so that all of them are compiled in the same way.
"""

import argparse
import os
import platform
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
from links import ADDRESSES, NAMES, inside, possible, two_machines
from turns import CHECKOUT, Trainer, Turns, environment_of, flowimg_command, run

from flowimg.build.data import build_source
from flowimg.jobs.prediction import empty_field
from flowimg.jobs.train.launch import work_of as workload
from flowimg.machine.device import memory_bytes, pick_device
from flowimg.machine.scaling import Links, Work, memory_of, step_seconds
from flowimg.settings.command import run_settings
from flowimg.training import sharding

NOTHING_ELSE = ["--figures", "false", *(f"--train.{name}=1000000" for name in ("steps", "sample-every", "log-every"))]
NOTHING_ELSE += [f"--train.{name}=1000000" for name in ("checkpoint-every", "held-out-every")]
ALONE, SEND = "alone", "senders"
SENT = ("small", "large", "gather", "scatter")
"""What those that only send do in turn: a small and a large all-reduce, and the calls of fully_shard."""
SMALL = 1
"""Numbers in the small one, which measures latency."""
CUDA = pick_device().type == "cuda"


# --- processes -------------------------------------------------------------------------------------------------------


class Team:
    """The processes of a way to train, or those that only send: each takes its turn when all do."""

    def __init__(self, name: str, command: Sequence[str], processes: int, machines: bool, folder: Path) -> None:
        env = environment_of(CHECKOUT, safe=False) | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        env |= {} if CUDA else {"ACCELERATE_USE_CPU": "true"}
        env |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": ADDRESSES[0] if machines else "127.0.0.1"}
        env |= {"LOCAL_WORLD_SIZE": "1" if machines else str(processes), "MASTER_PORT": str(free_port())}
        self.members = []
        for rank in range(processes):
            own = env | {"RANK": str(rank), "LOCAL_RANK": "0" if machines else str(rank)}
            own |= {"GLOO_SOCKET_IFNAME": NAMES[rank]} if machines else {}
            words, run = list(command), f"{folder}/{name}"
            if name == ALONE:
                own = {key: value for key, value in own.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
                own, run = own | {"CUDA_VISIBLE_DEVICES": str(rank)}, f"{run}-{rank}"
            words += [] if name == SEND else ["--run", run]
            before = inside(rank) if machines else []
            self.members.append(Trainer(words, own, folder / f"{name}-{rank}.txt", before))
        self.finished()

    def finished(self) -> float:
        """Wait for the steps asked for last; the seconds of the slowest process."""
        return max(member.seconds() for member in self.members)

    def turn(self, steps: int) -> float:
        """Seconds per step over this number of steps."""
        for member in self.members:
            member.ask(steps)
        return self.finished() / steps

    def end(self) -> None:
        for member in self.members:
            member.end()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


def send(count: int) -> None:
    """Be one of those that only send, in the turns of `SENT`: numbers, `count` of them but for the first turn."""
    if CUDA:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if CUDA else "gloo")
    each, turns, d = count // torch.distributed.get_world_size(), Turns(), torch.distributed
    few, whole, part = (torch.zeros(n, device="cuda" if CUDA else "cpu") for n in (SMALL, count, each))
    even = whole[: each * d.get_world_size()]
    calls: dict[str, Callable[[], object]] = {
        "small": lambda: d.all_reduce(few),
        "large": lambda: d.all_reduce(whole),
        "gather": lambda: d.all_gather_into_tensor(even, part),
        "scatter": lambda: d.reduce_scatter_tensor(part, even),
    }
    while True:
        for what in SENT:
            turns()
            calls[what]()


def steps_that_drop(args: list[str]) -> None:
    """Be a trainer that gathers weights anew in the backward pass, however little memory they take."""
    sharding.KEPT = 0.0
    run("steps", args)


# --- measuring -------------------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """What was measured: seconds of each round by (rate, what), and the peak memory of a process in MiB by what."""

    seconds: dict[tuple[float, str], list[float]]
    mib: dict[str, int]


def measure(commands: dict[str, list[str]], given: argparse.Namespace) -> Seen:
    """Take turns: on CPUs all teams at once, on GPUs, whose memory they need, one after the other."""
    seen, rates = Seen({}, {}), given.rates or [0.0]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        throttle = stack.enter_context(two_machines()) if given.rates else None
        for names in [[name] for name in commands] if CUDA else [list(commands)]:
            teams: dict[str, Team] = {}
            try:
                for name in names:
                    teams[name] = Team(name, commands[name], given.processes, bool(given.rates), folder)
                    print(f"{name} is ready", file=sys.stderr, flush=True)
                for rate in rates:
                    if throttle:
                        throttle(rate or None)
                    for number in range(given.rounds + 1):
                        for name in names:
                            found = a_turn(name, teams[name], given.steps)
                            for what, seconds in found.items() if number else ():  # the first round warms up
                                seen.seconds.setdefault((rate, what), []).append(seconds)
                seen.mib.update({name: teams[name].members[0].mib for name in names})
            finally:
                for team in teams.values():
                    team.end()
    return seen


def a_turn(name: str, team: Team, steps: int) -> dict[str, float]:
    """Seconds of a step; of those that only send, of each call."""
    if name != SEND:
        return {name: team.turn(steps)}
    # the turn that a team starts with was the first
    return {what: team.turn(1) for what in (*SENT[1:], SENT[0])}


# --- prediction ------------------------------------------------------------------------------------------------------


def links_of(seconds: dict[str, float], count: int, processes: int) -> Links:
    """Latency and rate of the links between the processes, from the seconds of calls with this many float32."""
    hops = 2 * max(1, (processes - 1).bit_length())
    hop, ring = seconds["small"] / hops, 4 * count * (1 - 1 / processes)
    rate = 2 * ring / (seconds["large"] - seconds["small"])
    # all are neighbours: a node of them all, whose links were measured and reach what was measured
    longer = {f"{s}s": (seconds[s] - (processes - 1) * hop) / (ring / rate) for s in ("gather", "scatter")}
    return Links(rate, rate, processes, hop, hop, 1.0, **longer)


def work_of(args: Sequence[str]) -> Work:
    """The network and the batch of these settings; its seconds are not known yet."""
    config = run_settings("train", args)
    field = empty_field(config, build_source(config).facts)
    return workload(config, field, config.train.precision != "fp32")


def ways_of(given: argparse.Namespace) -> list[tuple[str, int, bool]]:
    """What is measured: its name, `train.shard`, whether gathered weights are kept."""
    kept = sharding.keeps(work_of(given.args).numbers, memory_bytes(pick_device()))
    plain = [(f"shard {shard}", shard, kept) for shard in given.shards]
    cut = [shard for shard in given.shards if shard > 1 and given.dropped]
    return plain + [(f"shard {shard}, dropped", shard, False) for shard in cut]


def show(rate: float, seen: Seen, work: Work, given: argparse.Namespace) -> None:
    """Medians over the rounds, a line for each way to share."""
    n, alone = given.processes, seen.seconds[rate, ALONE]
    rounds = [dict(zip(SENT, row, strict=True)) for row in zip(*(seen.seconds[rate, s] for s in SENT), strict=True)]
    links = [links_of(one, work.numbers, n) for one in rounds]
    speed, hop, gathers, scatters = (
        statistics.median(getattr(link, name) for link in links)
        for name in ("inside", "hop_inside", "gathers", "scatters")
    )
    limit, ms = f"{rate:g} Mbit/s" if rate else "no limit", 1000 * statistics.median(alone)
    print(f"\n{limit}; measured: {8 * speed / 1e6:,.0f} Mbit/s, {1e6 * hop:.0f} us a hop, alone {ms:.0f} ms,")
    print(f"a gather {gathers:.2f} and a reduce-scatter {scatters:.2f} times as long as a ring\n")
    print("| shard | step, ms | predicted | error | by round | memory, MiB | more than alone | predicted |")
    print("|---|---|---|---|---|---|---|---|")
    one = memory_of(work, 1, True)
    for name, shard, kept in ways_of(given):
        measured, predicted = seen.seconds[rate, name], []
        for compute, link in zip(alone, links, strict=True):
            f = compute / work.micro_batches / 3
            now = work._replace(forward=f, backward=2 * f)
            predicted.append(step_seconds(now, link, n, shard, kept, overlap=CUDA))
        errors = [100 * (p / m - 1) for p, m in zip(predicted, measured, strict=True)]
        memory = memory_of(work, shard, kept)
        more = (memory.state + memory.copies - one.state - one.copies) / 2**20
        cells = [f"{1000 * statistics.median(values):.0f}" for values in (measured, predicted)]
        cells += [f"{statistics.median(errors):+.0f} %", f"{min(errors):+.0f} to {max(errors):+.0f} %"]
        mib = seen.mib[name]
        cells += [f"{mib}", f"{mib - seen.mib[ALONE]:+}", f"{more:+.0f}"]
        print(f"| {name.removeprefix('shard ')} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--shards", type=int, nargs="+", default=[1], help="values of train.shard; 1 is DDP (default)")
    parser.add_argument("--rates", type=float, nargs="+", help="Mbit/s of the link between two machines; 0: no limit")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20 if CUDA else 2, help="steps of a turn")
    told = "measure each --shards above 1 also with weights that are gathered anew in the backward pass"
    parser.add_argument("--dropped", action="store_true", help=told)
    given, args = parser.parse_known_args()
    given.args = args
    if given.rates and (problem := possible()):
        raise SystemExit(f"--rates cannot be used: {problem}")
    if given.rates and given.processes != 2:
        raise SystemExit("--rates joins two machines with one process each: give --processes 2, or leave it out")
    work, batch = work_of(args), run_settings("train", args).train.batch_size
    print(f"{platform.platform()}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    print(f"{work.numbers:,} parameters, {work.blocks} blocks, {given.processes} processes", flush=True)
    words = [os.path.abspath(args[0]), *args[1:], *NOTHING_ELSE]
    part = ["--train.batch-size", str(batch // given.processes)]
    commands = {ALONE: flowimg_command("steps", [*words, *part]), SEND: [__file__, "--send", str(work.numbers)]}
    for name, shard, _ in ways_of(given):
        sharded = ["--train.shard", str(shard)] if shard > 1 else []
        plain = flowimg_command("steps", [*words, *sharded])
        commands[name] = [__file__, "--drop", *plain[2:]] if name.endswith("dropped") else plain
    seen = measure(commands, given)
    for rate in given.rates or [0.0]:
        show(rate, seen, work, given)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--send"]:
        send(int(sys.argv[2]))
    elif sys.argv[1:2] == ["--drop"]:
        steps_that_drop(sys.argv[2:])
    else:
        main()
