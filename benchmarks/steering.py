"""What steering a trained run gains: autoguidance, and pictures with a part drawn anew.

    python benchmarks/steering.py guide RUN ... --scales 1 1.2 1.5 2     scores over the scale of autoguidance
    python benchmarks/steering.py inpaint RUN --out rows.png             agreement of drawn halves, and 20 to look at

`guide` takes runs on points or on pictures, several of which are averaged (seeds of training); pictures are drawn from
--draws sets of seeds. --guidance adds classifier-free guidance. `inpaint` masks the lower half of --count pictures of
the run's test split, draws it without class (with autoguidance by --scales 1.5), and asks the classifier that evaluates
the run for its class.
Distances over evaluations, of solvers with and without noise: flowimg evaluate RUN --sweep-nfe 10 20 50 100
--sweep-solvers euler heun sde sde2 churn --sweep-times uniform --sweep-shifts 1.
"""

import argparse
import contextlib
import io
import statistics
from typing import Any

import torch
from accelerate import PartialState

import flowimg
from flowimg.build.data import build_source
from flowimg.conditions.labels import labelled
from flowimg.fields.classifier import agreement
from flowimg.figures.samples import save_grid
from flowimg.jobs.drawing import sampler_of
from flowimg.jobs.evaluate.comparison import ComparisonOptions, build_comparisons
from flowimg.machine.device import pick_device
from flowimg.runs.guides import with_guide
from flowimg.runs.opening import open_run
from flowimg.sampling.steering import inpaint
from flowimg.settings.steering import Inpaint

SHOWN = ("off", "mass_ratio", "sw2", "frechet", "coverage", "agreement")
LOOKED_AT, DRAWN = 20, 5
"""Pictures in the figure, and how often each is drawn."""


def guide(asked: argparse.Namespace) -> None:
    """A table of scores over the scale."""
    how: dict[str, Any] = {"num_steps": asked.steps, "solver": asked.solver, "guidance": asked.guidance}
    how |= {"count": asked.count, "guide_interval": asked.interval}
    for scale in asked.scales:
        found: list[dict[str, Any]] = []
        for name in asked.runs:
            run = flowimg.load(name)
            for draw in range(asked.draws):
                guided = {"guide": asked.guide, "guide_scale": scale} if scale != 1 else {"guide_interval": (0.0, 1.0)}
                with contextlib.redirect_stdout(io.StringIO()):
                    found.append(run.evaluate(seed=draw * (asked.count or 100_000), **{**how, **guided}))
        told = [f"scale {scale:<5g} {found[0]['nfe']:>4} evaluations"]
        for key in SHOWN:
            if found[0].get(key) is not None:
                each = [one[key] for one in found]
                told.append(f"{key} {statistics.mean(each):.4f} ({min(each):.4f} to {max(each):.4f})")
        print("  ".join(told), flush=True)


def halves(asked: argparse.Namespace) -> None:
    """The agreement of pictures whose lower half was drawn."""
    (name,) = asked.runs
    scale = asked.scales[0]
    run = with_guide(open_run(name, "ema", None, pick_device()), None if scale == 1 else asked.guide)
    with contextlib.redirect_stdout(io.StringIO()):
        options = ComparisonOptions("proxy", learned=run.data)
        judge = build_comparisons(run.config, run.facts, options, PartialState())[0].judge
        data: Any = run.config.data.model_copy(update={"split": "test", "held_out": 0, "first": None, "labels": True})
        test = build_source(run.config.model_copy(update={"data": data})).load(torch.device("cpu"))
        pictures = test.some(asked.count)
    assert judge is not None
    space: Any = run.space
    x_1, labels = space.encode(pictures.pixels), pictures.labels
    masks = torch.zeros(len(x_1), 1, *space.shape[1:], dtype=torch.bool)
    masks[..., space.shape[1] // 2 :, :] = True
    grey = agreement(judge, torch.where(masks, 0.0, x_1), labels)
    print(
        f"{len(x_1)} pictures of test: their class in {agreement(judge, x_1, labels):.1%}, with a grey half {grey:.1%}"
    )
    for rounds in asked.rounds:
        more: dict[str, Any] = {} if rounds == 1 or asked.stretch is None else {"stretch": asked.stretch}
        more |= {} if scale == 1 else {"guide": asked.guide, "guide_scale": scale, "guide_interval": asked.interval}
        how = Inpaint(run=name, num_steps=asked.steps, solver=asked.solver, rounds=rounds, **more)
        sampler = sampler_of(run, how, batch_size=128)
        none = labelled(None, len(x_1), run.facts.classes)
        (_, drawn), nfe = inpaint(sampler, x_1, masks, range(len(x_1)), none, rounds, how.steps_a_stretch)
        same = torch.equal(torch.where(masks, 0, space.decode(drawn)), torch.where(masks, 0, pictures.pixels))
        kept = "equal" if same else "NOT EQUAL"
        print(
            f"rounds {rounds}: {agreement(judge, drawn, labels):.1%}, {nfe} evaluations, upper half {kept}", flush=True
        )
    some, seeds = x_1[:LOOKED_AT].repeat_interleave(DRAWN, 0), list(range(DRAWN)) * LOOKED_AT
    none = labelled(None, len(some), run.facts.classes)
    drawn = inpaint(sampler, some, masks[:1], seeds, none, rounds, how.steps_a_stretch).states[-1]
    rows = drawn.unflatten(0, (LOOKED_AT, DRAWN))
    known = torch.where(masks[:LOOKED_AT], 0.0, x_1[:LOOKED_AT])
    table = torch.cat([x_1[:LOOKED_AT, None], known[:, None], rows], 1)
    side_by_side = torch.cat(table.chunk(2), 1)
    save_grid(space, side_by_side.flatten(0, 1), asked.out, side_by_side.shape[1])
    print(asked.out)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["guide", "inpaint"])
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--guide", default="early")
    parser.add_argument("--scales", type=float, nargs="+", default=None)
    parser.add_argument("--interval", type=float, nargs=2, default=(0.0, 1.0))
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--solver", default="euler")
    parser.add_argument("--count", type=int, default=None)
    parser.add_argument("--rounds", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--stretch", type=int, default=None)
    parser.add_argument("--out", default="halves.png")
    asked = parser.parse_args()
    asked.interval = tuple(asked.interval)
    if asked.what == "inpaint":
        asked.count = asked.count or 500
    asked.scales = asked.scales or ([1.0] if asked.what == "inpaint" else [1.0, 1.2, 1.5, 2.0, 3.0])
    {"guide": guide, "inpaint": halves}[asked.what](asked)


if __name__ == "__main__":
    main()
