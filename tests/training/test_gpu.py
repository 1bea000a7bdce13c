"""What needs a GPU: `pytest -m gpu`."""

import pytest
import torch

from flowimg.cli import main
from flowimg.runs.folder import RunFolder

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


WAYS = ["fp32 false", "bf16 false", "bf16 true", "fp16 false", "fp16 graphs", "auto auto", "auto graphs"]


@pytest.fixture(autouse=True)
def nothing_is_left_out(monkeypatch):
    """Of what is to be compiled or recorded, or a test would compare a thing with itself."""
    from torch._dynamo.utils import counters  # which takes a while

    torch.compiler.reset()
    counters.clear()
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    yield
    assert counters["inductor"]["cudagraph_skips"] == 0


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("how", WAYS)
def test_every_precision_learns_and_continues(tmp_path, how, kind):
    run, (precision, compile) = tmp_path / "run", how.split()
    command = ["train", "configs/digits.yaml", "--run", str(run), "--optim.kind", kind]
    command += ["--train.precision", precision, "--train.compile", compile]
    command += ["--train.steps", "60", "--train.log-every", "20", "--train.sample-every", "60", "--figures", "false"]
    main([*command, "--train.stop-at", "30"])
    main(command)
    losses = [record["loss"] for record in RunFolder(run).records()]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("more", [[], ["--field.gradient-checkpointing", "true"]], ids=["plain", "checkpointing"])
def test_graphs_compute_what_compiled_passes_do(tmp_path, more):
    told = {}
    for compile in ("true", "graphs"):
        run = tmp_path / compile
        command = ["train", "configs/digits.yaml", "--run", str(run), "--train.precision", "fp32", "--train.steps", "8"]
        command += ["--train.accumulation", "2", "--field.dropout", "0.1", "--train.compile", compile, *more]
        main([*command, "--train.log-every", "1", "--figures", "false"])
        told[compile] = [(line["loss"], line["grad_norm"]) for line in RunFolder(run).records()]
    for one, other in zip(told["true"], told["graphs"], strict=True):
        assert one == pytest.approx(other, rel=1e-3)


def test_channels_last_in_graphs_round_no_worse_than_bf16(tmp_path):
    told = {}
    for how in ("fp32 false", "bf16 false", "bf16 graphs"):
        run, (precision, compile) = tmp_path / how, how.split()
        command = ["train", "configs/digits.yaml", "--run", str(run), "--train.steps", "8", "--train.log-every", "1"]
        main([*command, "--train.precision", precision, "--train.compile", compile, "--figures", "false"])
        told[how] = torch.tensor([(line["loss"], line["grad_norm"]) for line in RunFolder(run).records()]).double()
    plain, graphs = ((told[how] / told["fp32 false"] - 1).abs().max() for how in ("bf16 false", "bf16 graphs"))
    assert graphs < 2 * plain + 1e-3 < 0.1


def test_points_are_learned_in_graphs_as_without(tmp_path, capsys):
    told = {}
    for compile in ("false", "graphs"):
        run = tmp_path / compile
        command = ["train", "configs/checkerboard.yaml", "--run", str(run), "--train.steps", "60"]
        main([*command, "--train.log-every", "20", "--figures", "false", "--train.compile", compile])
        assert ("in graphs" in capsys.readouterr().out) == (compile == "graphs")
        told[compile] = [line["loss"] for line in RunFolder(run).records()]
    assert told["graphs"] == pytest.approx(told["false"], rel=1e-3)


def test_gpu_and_cpu_draw_the_same_batch(tmp_path):
    from flowimg.build.data import build_source
    from flowimg.build.flow import build_objective
    from flowimg.settings.reading import load

    config = load("configs/digits.yaml")
    objective = build_objective(config)
    cpu, gpu = (objective.draw(build_source(config).load(torch.device(d)), 7, range(32, 96)) for d in ("cpu", "cuda"))
    assert all(torch.equal(a, b.cpu()) for a, b in zip(cpu[:3], gpu[:3], strict=True))
    assert torch.equal(cpu.cond.label, gpu.cond.label.cpu())
