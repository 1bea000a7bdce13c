"""`flowimg train --profile`: where the time of a step goes."""

import gzip
import json
import re

import pytest
from tiny import write_settings

from flowimg.cli import main
from flowimg.jobs.folder import RunFolder
from flowimg.jobs.profile import AFTER, STEPS, kind_of

POINTS = ["train", "configs/checkerboard.yaml", "--train.steps", "20", "--train.log-every", "5"]
POINTS += ["--train.batch-size", "64", "--grid.count", "50", "--grid.num-steps", "2", "--figures", "false"]


def shares(page, heading):
    """Milliseconds and percent of every line below a heading."""
    block = page.split(heading)[1].split("\n\n")[0].splitlines()[1:]
    rows = [re.fullmatch(r"(.{42}) *([\d.]+) *([\d.]+) %( +\d+)?", line) for line in block]
    return {row[1].strip(): (float(row[2]), float(row[3])) for row in rows}


def test_a_profile_is_a_page_and_a_trace_and_the_run_is_the_same(tmp_path, capsys):
    main([*POINTS, "--run", str(tmp_path / "plain")])
    main([*POINTS, "--run", str(tmp_path / "run"), "--profile"])
    assert "profile " in capsys.readouterr().out
    one, two = ([r["loss"] for r in RunFolder(tmp_path / name).records()] for name in ("plain", "run"))
    assert one == two and len(one) == 4
    folder = RunFolder(tmp_path / "run").profile
    page = (folder / "summary.txt").read_text()
    assert page.startswith(f"{STEPS} steps up to step {AFTER + STEPS}, on cpu")
    step = float(re.search(r"a step +([\d.]+) ms", page)[1])
    parts, kinds = shares(page, "parts of a step"), shares(page, "kinds of operations")
    assert list(parts) == ["data", "loss", "optimiser", "backward"]
    assert all(0 < ms < step for ms, _ in parts.values())
    assert {"matrix products", "norms and activations", "optimiser and average"} <= kinds.keys()
    for ms, share in [*parts.values(), *kinds.values()]:
        assert share == pytest.approx(100 * ms / step, abs=0.5)
    assert sum(share for _, share in kinds.values()) < 101
    events = json.loads(gzip.decompress((folder / "trace.json.gz").read_bytes()))["traceEvents"]
    for part in ("data", "loss", "optimiser"):
        assert sum(event.get("name") == part and event.get("ph") == "X" for event in events) == STEPS


def test_a_continued_run_is_profiled_from_where_it_goes_on(tmp_path):
    run = ["--run", str(tmp_path / "run")]
    main([*POINTS, *run, "--train.stop-at", "3"])
    main([*POINTS, *run, "--profile"])
    assert "up to step 18, on" in (RunFolder(tmp_path / "run").profile / "summary.txt").read_text()


def test_of_pictures_it_is_the_network_that_takes_the_time(tmp_path):
    config = write_settings(tmp_path / "c.yaml", train={"steps": AFTER + STEPS})
    main(["train", str(config), "--run", str(tmp_path / "run"), "--profile"])
    page = (RunFolder(tmp_path / "run").profile / "summary.txt").read_text()
    assert next(iter(shares(page, "kinds of operations"))) == "convolution"


def test_a_start_of_too_few_steps_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*POINTS, "--run", str(tmp_path / "run"), "--train.stop-at", str(AFTER + STEPS - 1), "--profile"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "--profile needs 15 steps, but this start ends at step 14" in error
    main([*POINTS, "--run", str(tmp_path / "run"), "--train.steps", "4"])  # which left nothing behind


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::mkldnn_convolution", "convolution"),
        ("aten::addmm", "matrix products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::native_group_norm", "norms and activations"),
        ("aten::_fused_adamw_", "optimiser and average"),
        ("aten::copy_", "copies, casts and memory"),
        ("aten::linalg_vector_norm", "optimiser and average"),
        ("aten::normal_", "random numbers"),
        ("aten::cumsum", "all else"),
    ],
)
def test_kinds_go_by_names(name, kind):
    assert kind_of(name) == kind
