"""Runs whose weights, gradients, optimiser and averages are cut over processes: the same runs as those that are not."""

import os
import re
import signal

import pytest
import yaml
from safetensors.torch import load_file
from survival import CRASH, ROOT, SLOWLY, begin, finish, go_on, last_checkpoint, launch, status, wait_for, words

from flowimg.cli import main
from flowimg.files import read_json
from flowimg.runs.folder import RunFolder
from flowimg.training.checkpoint import newest_whole

TRAIN = (ROOT / "scripts" / "train.py",)
KEPT, DROPPED = ((ROOT / "tests" / "in_blocks.py", how, "train") for how in ("kept", "dropped"))
BASE = {
    "data": {"kind": "images", "source": "digits", "flip": True, "first": 104, "held_out": 8},
    "field": {"kind": "unet", "channels": [32, 64], "layers": 1, "attention": [4], "zero_output": False},
    "optim": {"lr": 1e-3, "warmup": 4, "ema": 0.99},
    "train": {
        "steps": 12, "batch_size": 16, "label_drop": 0.2, "log_every": 1, "sample_every": 1000, "snapshots": 2,
        "checkpoint_every": 100, "precision": "fp32",
    },
    "grid": {"count": 2, "num_steps": 1},
}  # fmt: skip


def settings(path, **changes):
    merged = {group: {**BASE[group], **changes.get(group, {})} for group in BASE}
    path.write_text(yaml.safe_dump({**merged, "figures": False}))
    return path


def start_on(processes, config, run, *more, by=TRAIN):
    return go_on(processes, *by, config, "--run", run, *more)


def tensors(run, step=12):
    folder = run / "checkpoints" / f"step_{step:08d}"
    files = sorted(folder.glob("*.safetensors"))
    return {f"{re.sub('-.*', '', file.stem)}/{name}": t for file in files for name, t in load_file(file).items()}


def losses(run):
    return [record["loss"] for record in RunFolder(run).records()]


EXACT = {
    "fp32": {"optim": {"clip": None}, "field": {"dropout": 0.1}},
    "bf16": {"optim": {"clip": None}, "train": {"precision": "bf16", "accumulation": 2}},
    "muon": {"optim": {"clip": None, "kind": "muon"}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_as_one_block_it_is_the_unsharded_run_bit_for_bit(name, tmp_path):
    config = settings(tmp_path / "c.yaml", **EXACT[name])
    start_on(2, config, tmp_path / "whole")
    said = start_on(2, config, tmp_path / "cut", "--train.shard", 2)
    assert "2 processes, 2 share one copy of the weights" in said
    one, two = last_checkpoint(tmp_path / "whole", 12), last_checkpoint(tmp_path / "cut", 12)
    assert sorted(one) == ["averages.safetensors", "ema.safetensors", "optimizer.safetensors", "weights.safetensors"]
    assert one == two
    kept = [{f.name: f.read_bytes() for f in (tmp_path / run / "snapshots").iterdir()} for run in ("whole", "cut")]
    assert len(kept[0]) == 2 and kept[0] == kept[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    config = settings(folder / "c.yaml")  # Muon makes of rounding in small gradients steps as large as any
    start_on(2, config, folder / "run")
    return folder / "run", config


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "shard", "by"), [(2, "all", KEPT), (4, "all", KEPT), (4, 2, DROPPED)])
def test_in_blocks_it_is_the_unsharded_run_but_for_the_order_of_sums(processes, shard, by, whole, tmp_path):
    (run, config), cut = whole, tmp_path / "cut"
    start_on(processes, config, cut, "--train.shard", shard, by=by)
    assert losses(cut) == pytest.approx(losses(run), rel=1e-5)
    one, two = tensors(run), tensors(cut)
    assert one.keys() == two.keys()
    for kind, bound in {"weights/": 1e-3, "ema/": 1e-3, "optimizer/exp_avg.": 1e-4}.items():
        for key in (key for key in one if key.startswith(kind)):
            assert float((one[key] - two[key]).abs().max()) < bound, key


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "by"), [(2, KEPT), (4, DROPPED)])
def test_stopped_and_continued_it_is_the_run_bit_for_bit(processes, by, tmp_path):
    more = {"dropout": 0.1, "gradient_checkpointing": True}
    config = settings(tmp_path / "c.yaml", field=more, train={"accumulation": 2, "precision": "bf16", "offload": True})
    start_on(processes, config, tmp_path / "straight", "--train.shard", 2, by=by)
    for stop in (5, 12):
        start_on(processes, config, tmp_path / "cut", "--train.shard", 2, "--train.stop-at", stop, by=by)
    assert last_checkpoint(tmp_path / "straight", 12) == last_checkpoint(tmp_path / "cut", 12)


@pytest.mark.slow
def test_it_continues_on_other_processes_with_the_same_samples(tmp_path):
    config = settings(tmp_path / "c.yaml")
    start_on(2, config, tmp_path / "straight")
    start_on(2, config, tmp_path / "cut", "--train.shard", 2, "--train.stop-at", 3)
    for processes, shard, stop in ((1, 1, 6), (4, 2, 9), (4, "all", 12)):
        start_on(processes, config, tmp_path / "cut", "--train.shard", shard, "--train.stop-at", stop)
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "straight"), rel=1e-4)


@pytest.mark.slow
def test_one_state_has_the_same_files_whoever_writes_them(tmp_path):
    config = settings(tmp_path / "c.yaml", train={"stop_at": 1})
    written = []
    for processes, shard in ((1, 1), (2, 2), (4, 2)):
        run = tmp_path / f"{processes}-{shard}"
        start_on(processes, config, run, "--train.shard", shard, by=DROPPED)
        written.append(last_checkpoint(run, 0))
    assert len(written[0]) > 8 and "weights-2.safetensors" in written[0]
    assert all(files == written[0] for files in written)
    main(["sample", str(run), "--count", "2", "--num-steps", "1", "--out", str(tmp_path / "out")])
    assert not list((run / "checkpoints").glob(".*"))


@pytest.mark.slow
def test_unequal_shares_of_grids_evaluations_and_figures_wait_for_nobody(tmp_path):
    config = settings(
        tmp_path / "c.yaml",
        train={"steps": 2, "sample_every": 1, "evaluate_every": 1, "evaluate_count": 21, "held_out_every": 1},
        grid={"count": 5, "num_steps": 2, "solver": "dopri5", "tolerance": 0.01},
    )
    run = tmp_path / "run"
    start_on(2, config, run, "--train.shard", "all", "--figures", "true", by=DROPPED)
    for name in ("samples/step_00000002.png", "samples/step_00000002_raw.png", "evaluations.jsonl", "report.html"):
        assert (run / name).stat().st_size > 0
    assert (run / "model" / "unet").is_dir()


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory):
    run = tmp_path_factory.mktemp("straight") / "run"
    go_on(2, CRASH, "never", 0, *words(run, "--train.shard", 2))
    return last_checkpoint(run)


@pytest.mark.slow
@pytest.mark.parametrize("point", ["1:half of ema", "1:shared", "0:renamed"])
def test_killed_while_it_saves_it_continues_from_a_whole_checkpoint(point, never_killed, tmp_path):
    run = tmp_path / "run"
    code, said = finish(begin(*launch(2), CRASH, point, 4, *words(run, "--train.shard", 2)))
    assert code == 1, said
    step = newest_whole(run / "checkpoints")[0].name
    assert step in ("step_00000002", "step_00000004") and (step == "step_00000004") >= (point == "0:renamed")
    go_on(2, CRASH, "never", 0, *words(run, "--train.shard", 2))
    assert status(run)["state"] == "done" and last_checkpoint(run) == never_killed
    assert not list((run / "checkpoints").glob(".*"))


@pytest.mark.slow
def test_a_signal_to_one_process_in_a_grid_ends_the_run_and_it_goes_on(never_killed, tmp_path):
    run, grid = tmp_path / "run", ["--grid.num-steps", "1000000", "--train.sample-every", "2"]
    launcher = begin(*launch(2), SLOWLY, "none", *words(run, *grid, "--train.shard", 2))
    wait_for(lambda: status(run).get("stage") == "drawing samples")
    os.kill(read_json(run / "processes" / "1.json")["pid"], signal.SIGTERM)
    finish(launcher)
    assert (status(run)["state"], status(run)["exit"]) == ("preempted", 143)
    assert status(run)["saved"] == status(run)["step"] < 8
    go_on(2, CRASH, "never", 0, *words(run, "--train.shard", 2))
    assert status(run)["state"] == "done" and last_checkpoint(run) == never_killed


REFUSED = [
    (("--train.shard", "2"), "1 process was launched, which train.shard 2 does not divide"),
    (("--train.shard", "0"), "train.shard: 0 is none of all and a whole number above 0"),
    (("--train.shard", "some"), "train.shard: 'some' is none of all and a whole number above 0"),
    (("--train.shard", "2", "--train.precision", "fp16"), "shard 2 and precision fp16"),
    (("--train.shard", "all", "--train.compile", "graphs"), "shard all and compile graphs"),
    (("--train.offload", "true", "--train.compile", "true"), "offload and compile true"),
    (("--train.offload", "true", "--train.micro-batch", "auto"), "offload and micro_batch auto"),
]


@pytest.mark.parametrize(("more", "said"), REFUSED)
def test_what_cannot_be_is_one_sentence(more, said, tmp_path, capsys):
    config = settings(tmp_path / "c.yaml", train={"steps": 1})
    with pytest.raises(SystemExit) as stop:
        main(["train", str(config), "--run", str(tmp_path / "run"), *more])
    assert stop.value.code == 2 and said in " ".join(capsys.readouterr().err.split())


def test_activations_on_the_host_change_no_number(tmp_path):
    config = settings(tmp_path / "c.yaml", train={"steps": 2, "snapshots": 0})
    for name, asked in (("here", "false"), ("there", "true")):
        main(["train", str(config), "--run", str(tmp_path / name), "--train.offload", asked])
    assert last_checkpoint(tmp_path / "here", 2) == last_checkpoint(tmp_path / "there", 2)


def test_all_of_one_process_is_no_shard(tmp_path, capsys):
    config = settings(tmp_path / "c.yaml", train={"steps": 1, "snapshots": 0})
    main(["train", str(config), "--run", str(tmp_path / "run"), "--train.shard", "all"])
    assert "share one copy" not in capsys.readouterr().out
