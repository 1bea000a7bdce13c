"""`flowimg estimate CONFIG --processes N ...`: its options, its table, and its choice."""

import json

import pytest
import torch
from tiny import write_settings

from flowimg.cli import main
from flowimg.jobs import prediction
from flowimg.machine.scaling import GPUS
from flowimg.settings.verbs import NODE, Estimate

GIB = 2**30


@pytest.fixture
def predicted(tmp_path, capsys):
    """The result of a prediction for a tiny run on digits, and what it printed."""

    def predicted(*args, **settings):
        path = write_settings(tmp_path / "c.yaml", **settings)
        main(["estimate", str(path), *args, "--json"])
        out, err = capsys.readouterr()
        return json.loads(out), err

    return predicted


def test_a_row_for_each_number_of_processes_and_each_way_to_share(predicted):
    told, said = predicted("--processes", "1", "8", "64", "--gpu", "h100")
    ways = [(row["processes"], row["shard"]) for row in told["rows"]]
    assert ways == [(1, 1), (8, 1), (8, 8), (64, 1), (64, 8), (64, 64)]
    assert [sum(row["chosen"] for row in told["rows"] if row["processes"] == n) for n in (1, 8, 64)] == [1, 1, 1]
    assert "computed, not measured" in said and "docs/scale.md" in said
    assert "which a U-Net of 36 M parameters reached" in said
    table = [line.split() for line in said.splitlines() if line.strip().startswith(("1 ", "8 ", "64 "))]
    assert [(line[0], line[1]) for line in table] == [(str(n), "all" if k == 64 else str(k)) for n, k in ways]
    assert [line[-1] == "choose" for line in table] == [row["chosen"] for row in told["rows"]]


def test_one_gpu_is_all_compute_and_more_are_less(predicted):
    told, _ = predicted("--processes", "1", "64")
    one, ddp, *_ = told["rows"]
    assert one["efficiency"] == pytest.approx(1) and one["step_seconds"] == pytest.approx(told["compute_seconds"])
    assert ddp["efficiency"] < 1
    assert ddp["samples_per_second"] == pytest.approx(64 * 16 / ddp["step_seconds"])


def test_the_state_is_that_of_the_run(predicted):
    """Numbers of the network, AdamW's two moments, the EMA and, with snapshots, two power averages."""
    plain, kept = (predicted("--processes", "1", train={"snapshots": snapshots})[0] for snapshots in (0, 2))
    parameters = 4 * plain["parameters"]
    memory = plain["rows"][0]["memory_bytes"]
    assert [memory[name] for name in ("weights", "gradients", "optimiser", "averages")] == [
        parameters, parameters, 2 * parameters, parameters
    ]  # fmt: skip
    assert kept["rows"][0]["memory_bytes"]["averages"] == 3 * parameters


def test_compute_follows_from_the_share_of_the_peak(predicted):
    quick, slow = (predicted("--processes", "8", "--share", share)[0] for share in ("0.4", "0.1"))
    assert slow["compute_seconds"] == pytest.approx(4 * quick["compute_seconds"])
    # these settings train in fp32, in which an H100 has 67 TFLOP/s
    assert quick["compute_seconds"] == pytest.approx(16 * quick["flops_per_sample"] / (0.4 * 67e12))


def test_samples_of_a_gpu_are_cut_into_what_fits(predicted, monkeypatch):
    told, _ = predicted("--processes", "8", "--samples", "32")
    assert {(row["micro_batch"], row["accumulation"]) for row in told["rows"]} == {(32, 1)}
    sample = prediction.OVERHEAD * told["activation_bytes_per_sample"]
    state = told["rows"][0]["memory_bytes"]["peak"] - 32 * sample
    room = (state + 8.5 * sample) / prediction.USABLE / GIB
    monkeypatch.setitem(prediction.GPUS, "h100", GPUS["h100"]._replace(memory=room))
    told, _ = predicted("--processes", "8", "--samples", "32")
    assert (told["rows"][0]["micro_batch"], told["rows"][0]["accumulation"]) == (8, 4)
    assert told["rows"][0]["fits"]


def test_what_fits_nowhere_is_said(predicted, monkeypatch):
    monkeypatch.setitem(prediction.GPUS, "h100", GPUS["h100"]._replace(memory=1e-6))
    told, said = predicted("--processes", "8", "64")
    assert not any(row["fits"] or row["chosen"] for row in told["rows"])
    assert "nothing fits on 8 GPUs" in said and "nothing fits on 64 GPUs" in said


@pytest.mark.parametrize(
    ("rows", "chosen"),
    [
        ([(1, True, 0.90), (8, True, 0.95), (64, True, 0.9)], 1),  # the simplest, wherever it fits
        ([(1, False, 0.99), (8, True, 0.93), (64, True, 0.95)], 64),
        ([(1, False, 0.99), (8, True, 0.95), (64, True, 0.955)], 8),
        ([(1, False, 0.99), (8, False, 0.95), (64, True, 0.5)], 64),
    ],
)
def test_the_fewest_that_share_are_chosen_if_none_is_better(rows, chosen):
    rows = [{"processes": 64, "shard": k, "fits": fits, "efficiency": e, "chosen": False} for k, fits, e in rows]
    prediction._choose(rows)
    assert [row["shard"] for row in rows if row["chosen"]] == [chosen]


def test_a_gpu_of_that_kind_is_measured(predicted, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    asked = []
    monkeypatch.setattr(prediction, "_measured", lambda *args: asked.append(args[2:]) or 0.25)
    told, said = predicted("--processes", "8", "64")
    assert asked == [(16, 64)] and told["compute_seconds"] == pytest.approx(16 * 0.25) and "measured here" in said
    told, said = predicted("--processes", "8", "--gpu", "a100")
    assert len(asked) == 1 and "measured here" not in said


def test_a_step_is_measured_on_this_device(tmp_path, monkeypatch):
    from flowimg.build.data import build_source
    from flowimg.settings.reading import load

    config = load(str(write_settings(tmp_path / "c.yaml", train={"shard": 8})))  # for the many GPUs, not for this one
    sizes = []
    monkeypatch.setattr(prediction, "measured_step", lambda state: sizes.append(state.objective.batch_size) or 2.0)
    assert prediction._measured(config, build_source(config), 8, 64) == 0.25
    assert sizes == [8]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--processes", "8", "--gpu", "v100"], "command line: gpu: 'v100' is none of h100, h200 and a100"),
        (["--gpu", "h100"], "a prediction needs the numbers of GPUs: for example --processes 8 64 512"),
        (["--processes"], "a prediction needs the numbers of GPUs: for example --processes 8 64 512"),
        (["--processes", "8", "12"], "processes 12 leaves a node of 8 GPUs in part empty: give a multiple of 8"),
        (["--processes", "0"], "processes[0] is 0, but should be greater than or equal to 1"),
        (["--processes", "8", "--share", "2"], "share is 2"),
        (["--processes", "8", "--speed", "2"], "unknown setting --speed"),
    ],
)
def test_wrong_options_are_one_sentence(args, message, refused):
    status, said = refused("estimate", "configs/checkerboard.yaml", *args)
    assert status == 2 and message in said


def test_the_help_names_the_options(capsys):
    with pytest.raises(SystemExit):
        main(["estimate", "configs/checkerboard.yaml", "--help"])
    out = capsys.readouterr().out
    for name in Estimate.model_fields:
        assert f"  --{name} " in out


def test_the_settings_name_the_gpus_that_are_known_in_nodes_of_one_size():
    from typing import get_args

    assert set(get_args(Estimate.model_fields["gpu"].annotation)) == set(GPUS)
    assert {gpu.links.node for gpu in GPUS.values()} == {NODE}


def test_points_are_predicted_too(capsys):
    main(["estimate", "configs/checkerboard.yaml", "--processes", "8", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["rows"][0]["chosen"] and told["rows"][0]["memory_bytes"]["weights"] == 4 * told["parameters"]
