"""The two promises of the loop: a continued run is the run, and a cut batch is the batch."""

import re

import pytest
import torch
import yaml
from safetensors.torch import load_file
from survival import BIN, ROOT, go_on

from flowimg.runs.folder import RunFolder

FLOWIMG = BIN / "flowimg"
CUTS = ["accumulated", pytest.param("two", marks=pytest.mark.slow)]
BASE = {
    "data": {"kind": "images", "source": "digits", "flip": True, "first": 117, "held_out": 8},
    "coupling": {"kind": "ot", "block": 4},
    "field": {"kind": "unet", "channels": [32, 64], "layers": 1, "attention": [4], "zero_output": False},
    "optim": {"lr": 1e-3, "warmup": 4, "ema": 0.99},
    "train": {"steps": 8, "batch_size": 16, "label_drop": 0.2, "log_every": 1, "sample_every": 1000},
    "grid": {"count": 2, "num_steps": 1},
}


def settings(path, **changes):
    merged = {group: {**BASE[group], **changes.get(group, {})} for group in BASE}
    path.write_text(yaml.safe_dump({**merged, "figures": False}))
    return path


def run(*command):
    """A process of its own; its words."""
    return go_on(1, *command)


def tensors(run_folder, step):
    folder = run_folder / "checkpoints" / f"step_{step:08d}"
    return {f"{file.stem}/{name}": t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}


@pytest.mark.slow
def test_a_continued_run_is_the_run_bit_for_bit(tmp_path):
    # 109 digits in batches of 16: epochs end inside steps 7 and 14, before the stop and after it
    config = settings(
        tmp_path / "c.yaml",
        field={"dropout": 0.2},
        train={"steps": 16, "accumulation": 2, "precision": "bf16", "checkpoint_every": 100, "snapshots": 5},
    )
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    run(FLOWIMG, "train", config, "--run", straight)
    run(FLOWIMG, "train", config, "--run", cut, "--train.stop-at", 10)
    assert not (cut / "checkpoints" / "step_00000016").exists()
    assert "continued from step 10" in run(FLOWIMG, "train", config, "--run", cut)
    one, two = tensors(straight, 16), tensors(cut, 16)
    assert {name.split("/")[0] for name in one} == {"weights", "ema", "optimizer", "averages"}
    assert one.keys() == two.keys()
    different = [name for name in one if not torch.equal(one[name], two[name])]
    assert different == []
    kept, again = ({file.name: file.read_bytes() for file in (run / "snapshots").iterdir()} for run in (straight, cut))
    assert sorted(kept) == [f"step_{step:08d}.safetensors" for step in (4, 7, 10, 13, 16)] and kept == again
    first, second = (RunFolder(run).records() for run in (straight, cut))
    assert [event["step"] for event in RunFolder(cut).events()] == [0, 10]
    assert [r["step"] for r in first] == [r["step"] for r in second] == list(range(1, 17))
    assert [r.get("loss") for r in first] == [r.get("loss") for r in second]


@pytest.fixture(scope="module")
def cut_runs(once):
    """A run of 8 steps, cut in three ways, with what each process saw: `cut_runs(name)` is the folder of all."""
    recorder = ROOT / "tests" / "jobs" / "record_draws.py"
    ways = {
        "one": (1, 1, []),
        "accumulated": (1, 1, ["--train.accumulation", 4]),
        "two": (2, 1, []),
        "doubled": (1, 2, ["--train.stop-at", 1]),
    }

    def cut(name):
        processes, scale, more = ways[name]

        def train(folder):
            config = settings(folder / "c.yaml", train={"checkpoint_every": 1, "keep": 30})
            go_on(processes, recorder, folder / "draws", scale, "train", config, "--run", folder / "run",
               "--train.precision", "fp32", "--optim.clip", "None", *more)  # fmt: skip

        return once(f"cut-{name}", train)

    return cut


def seen(folder):
    """What all processes saw: (step, column) -> rows in the order of their places."""
    pieces = {}
    for file in sorted((folder / "draws").glob("*.safetensors")):
        for place, rows in load_file(file).items():
            step, start, column = place.split(".")
            pieces.setdefault((int(step), column), {})[int(start)] = rows
    return {key: torch.cat([rows for _, rows in sorted(parts.items())]) for key, parts in pieces.items()}


@pytest.mark.parametrize("name", CUTS)
def test_however_cut_the_batch_is_the_same_bit_for_bit(cut_runs, name):
    whole, cut = seen(cut_runs("one")), seen(cut_runs(name))
    assert whole.keys() == cut.keys() and len({step for step, _ in whole}) == 8
    assert {column for _, column in whole} == {"x_0", "x_1", "t", "cond"}
    assert all(len(rows) == 16 for rows in whole.values())
    assert [key for key in whole if not torch.equal(whole[key], cut[key])] == []


def gradient_gap(one, other):
    """Largest relative difference between the first step's gradients and those of one process, tensor by tensor.

    Without clipping, AdamW's first average is 0.1 of the first gradient.
    """
    one, other = (tensors(folder / "run", 1) for folder in (one, other))
    keys = [key for key in one if key.startswith("optimizer/exp_avg.")]
    # the bias of a convolution before a group norm has no gradient but rounding
    largest = max(one[key].norm() for key in keys)
    return max(float((one[k] - other[k]).norm() / one[k].norm()) for k in keys if one[k].norm() > 1e-5 * largest)


@pytest.mark.parametrize("name", CUTS)
def test_however_cut_the_first_gradients_agree(cut_runs, name):
    assert gradient_gap(cut_runs("one"), cut_runs(name)) < 1e-5


def test_a_gradient_scaled_wrongly_would_be_seen(cut_runs):
    assert gradient_gap(cut_runs("one"), cut_runs("doubled")) > 0.5


@pytest.mark.parametrize("name", CUTS)
def test_however_cut_the_losses_agree(cut_runs, name):
    def losses(which):
        return torch.tensor([record["loss"] for record in RunFolder(cut_runs(which) / "run").records()])

    one, other = losses("one"), losses(name)
    assert len(one) == len(other) == 8
    assert float(((one - other) / one).abs().max()) < 1e-4


LAYOUTS = [(1, "fp32"), (1, "bf16"), (2, "bf16"), (3, "fp32")]


def start_on(processes, config, folder, *more):
    return go_on(processes, ROOT / "scripts" / "train.py", config, "--run", folder, *more)


def epochs(path, precision):
    """96 digits in batches of 24: an epoch is 4 steps."""
    return settings(
        path,
        data={"first": 104},
        field={"dropout": 0.1},
        coupling={"block": 8},
        train={"steps": 9, "batch_size": 24, "precision": precision, "checkpoint_every": 100},
    )


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "precision"), LAYOUTS)
def test_resumed_twice_in_an_epoch_and_at_its_very_end_it_is_the_run_bit_for_bit(processes, precision, tmp_path):
    config = epochs(tmp_path / "c.yaml", precision)
    start_on(processes, config, tmp_path / "straight")
    stops = (1, 2, 4, 9) if processes == 1 else (2, 9)  # the end of an epoch is 4
    for stop in stops:
        start_on(processes, config, tmp_path / "cut", "--train.stop-at", stop)
    one, two = tensors(tmp_path / "straight", 9), tensors(tmp_path / "cut", 9)
    assert [event["step"] for event in RunFolder(tmp_path / "cut").events()] == [0, *stops[:-1]]
    assert one.keys() == two.keys() and [name for name in one if not torch.equal(one[name], two[name])] == []


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_on_another_number_of_processes_it_is_the_run_but_for_rounding(before, after, tmp_path):
    config = settings(
        tmp_path / "c.yaml",
        data={"first": 104},
        coupling={"block": 8},
        # the bounds are those of rounding in fp32; bf16, the default where a CPU is fast in it, rounds more
        train={"steps": 8, "batch_size": 24, "precision": "fp32", "checkpoint_every": 100},
    )
    start_on(before, config, tmp_path / "straight")
    start_on(before, config, tmp_path / "cut", "--train.stop-at", "4")
    said = start_on(after, config, tmp_path / "cut")
    assert re.search(rf"processes\s+{before}\s+{after}\s+same samples, different rounding", said)
    one, two = ([r["loss"] for r in RunFolder(tmp_path / name).records()] for name in ("straight", "cut"))
    assert one[:4] == two[:4] and one == pytest.approx(two, rel=1e-4)
    weights = [tensors(tmp_path / name, 8) for name in ("straight", "cut")]
    gaps = [float((weights[0][key] - weights[1][key]).norm() / (weights[0][key].norm() + 1e-3)) for key in weights[0]]
    assert max(gap for key, gap in zip(weights[0], gaps, strict=True) if key.startswith("weights/")) < 1e-2
