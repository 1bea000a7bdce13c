"""`flowimg train --profile`: where the time of a step goes."""

import gzip
import json
import re
from types import SimpleNamespace

import pytest
import torch
from tiny import write_settings
from torch.autograd import DeviceType

from flowimg.cli import main
from flowimg.jobs.train import profile
from flowimg.jobs.train.profile import AFTER, STEPS, kind_of
from flowimg.runs.folder import RunFolder

pytestmark = pytest.mark.usefixtures("sketches")

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


@pytest.mark.slow
def test_of_pictures_the_network_is_told_and_what_takes_longest_comes_first(tmp_path):
    config = write_settings(tmp_path / "c.yaml", train={"steps": AFTER + STEPS})
    main(["train", str(config), "--run", str(tmp_path / "run"), "--profile"])
    page = (RunFolder(tmp_path / "run").profile / "summary.txt").read_text()
    kinds = {kind: ms for kind, (ms, _) in shares(page, "kinds of operations").items()}
    assert {"convolution", "norms and activations"} <= kinds.keys() and kinds["convolution"] > 0
    assert [*kinds.values()] == sorted(kinds.values(), reverse=True)


def test_a_start_of_too_few_steps_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*POINTS, "--run", str(tmp_path / "run"), "--train.stop-at", str(AFTER + STEPS - 1), "--profile"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "--profile needs 15 steps, but this start ends at step 14" in error
    main([*POINTS, "--run", str(tmp_path / "run"), "--train.steps", "4"])  # which left nothing behind


def event(key, device, host_ms=0.0, device_ms=0.0, self_device_ms=None, mark=False):
    """What torch's profiler tells of five steps, in microseconds; an operation's kernels are told with it."""
    own = device_ms if self_device_ms is None else self_device_ms
    return SimpleNamespace(
        key=key, device_type=device, is_user_annotation=mark, count=5,
        cpu_time_total=5000 * host_ms, self_cpu_time_total=5000 * host_ms,
        device_time_total=5000 * device_ms, self_device_time_total=5000 * own,
    )  # fmt: skip


def test_of_a_gpu_every_kernel_is_told_once(monkeypatch):
    host, gpu = DeviceType.CPU, DeviceType.CUDA
    events = [
        event("data", host, 0.5, 1.0, 0.0), event("data", gpu, device_ms=7.0, mark=True),
        event("loss", host, 2.0, 30.0, 0.0), event("loss", gpu, device_ms=33.0, mark=True),
        event("optimiser", host, 1.0, 10.0, 0.0), event("optimiser", gpu, device_ms=11.0, mark=True),
        event("autograd::engine::evaluate_function: ConvolutionBackward0", host, 1.0, 40.0, 0.0),
        event("aten::convolution", host, 1.0, 70.0), event("cutlass_fprop", gpu, device_ms=70.0),
        event("aten::_fused_adamw_", host, 1.0, 10.0), event("multi_tensor_adam", gpu, device_ms=10.0),
    ]  # fmt: skip
    monkeypatch.setattr(profile, "peak_memory", lambda device: 1000)
    strategy = SimpleNamespace(device=torch.device("cuda"), processes=1)
    state = SimpleNamespace(strategy=strategy, objective=SimpleNamespace(batch_size=10), step=15)
    page = profile.summary(state, events, 5, 0.5)
    assert "a step           100 ms, 100 samples/s" in page and "80 ms of the device (80 %)" in page
    parts, kinds = shares(page, "parts of a step"), shares(page, "kinds of operations")
    assert [ms for ms, _ in parts.values()] == [1.0, 30.0, 10.0, 40.0]
    assert {kind: ms for kind, (ms, _) in kinds.items()} == {"convolution": 70.0, "optimiser and average": 10.0}


def test_a_run_that_is_done_is_none_the_worse_for_it(tmp_path, capsys):
    run = ["--run", str(tmp_path / "run")]
    main([*POINTS, *run])
    main([*POINTS, *run, "--profile"])
    assert not RunFolder(tmp_path / "run").profile.exists()
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "done"


def test_a_dry_run_has_nothing_to_keep_a_profile_of(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*POINTS, "--run", str(tmp_path / "run"), "--profile", "--dry-run"])
    assert stop.value.code == 2 and "give one of them" in capsys.readouterr().err


def test_a_disk_that_is_full_costs_the_page_not_the_run(tmp_path, monkeypatch, capsys):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(profile, "write_text", full)
    main([*POINTS, "--run", str(tmp_path / "run"), "--profile"])
    assert "no profile ([Errno 28]" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "done"


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
        ("void cudnn::engines_precompiled::nchwToNhwcKernel<__nv_bfloat16, float>", "turning pictures"),
        ("sm90_xmma_dgrad_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_cudnn", "convolution"),
        ("nvjet_sm90_tst_128x256_64x4_2x1_v_bz_coopA_NNN", "matrix products"),
        ("triton_poi_fused__to_copy_add_native_dropout_native_group_norm_silu_unsqueeze_14", "norms and activations"),
        ("triton_poi_fused__to_copy_convolution_23", "copies, casts and memory"),
        ("Norm", "norms and activations"),
        ("aten::native_dropout", "dropout"),
    ],
)
def test_kinds_go_by_names(name, kind):
    assert kind_of(name) == kind
