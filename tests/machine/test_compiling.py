"""`train.compile`: the same run, to rounding; its checkpoints are those of any run."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

from flowimg.build.data import build_source, cache_of
from flowimg.build.field import build_field
from flowimg.build.flow import build_objective
from flowimg.build.strategy import strategy_of
from flowimg.cli import main
from flowimg.errors import MachineError
from flowimg.fields.mlp import MLPField
from flowimg.flow.condition import Condition
from flowimg.jobs.drawing import compiled
from flowimg.jobs.train.launch import options_of
from flowimg.machine import compiling
from flowimg.runs.folder import RunFolder
from flowimg.runs.opening import open_run
from flowimg.settings.reading import validate
from flowimg.settings.run import Config
from flowimg.settings.verbs import Sample
from flowimg.training.loop import train_step
from flowimg.training.state import Recipe, start

pytestmark = pytest.mark.usefixtures("sketches")

QUICK = ("--train.steps", "4", "--train.log-every", "1", "--train.batch-size", "64", "--grid.count", "8")


def config_of(compile, field="mlp", precision="fp32", steps=2000):
    data = {"kind": "points" if field == "mlp" else "images", **({} if field == "mlp" else {"source": "digits"})}
    train = {"compile": compile, "precision": precision, "steps": steps}
    return validate(Config, {"run": "r", "data": data, "field": {"kind": field}, "train": train}, "here")


def asked(worth=True):
    return [
        compiling.compiles(asked, "train.compile", cache_of(config_of(asked)), worth) for asked in ("auto", False, True)
    ]


def on_a(kind, monkeypatch, hip=None):
    monkeypatch.setattr(compiling, "pick_device", lambda: SimpleNamespace(type=kind))
    monkeypatch.setattr(torch.version, "hip", hip)


def test_gpus_are_compiled_for_where_it_is_worth_it_and_others_when_asked(monkeypatch):
    on_a("cpu", monkeypatch)
    assert asked() == [False, False, True]
    on_a("cuda", monkeypatch)
    assert asked() == [True, False, True]
    assert asked(worth=False) == [False, False, True]


@pytest.mark.parametrize(("kind", "hip"), [("cpu", None), ("mps", None), ("cuda", "7.0")])
def test_graphs_are_for_gpus_of_nvidia(monkeypatch, kind, hip):
    on_a(kind, monkeypatch, hip)
    with pytest.raises(MachineError, match="graphs needs an NVIDIA GPU"):
        options_of(config_of("graphs"), 1)


def test_on_a_cpu_the_compiler_is_left_to_itself(monkeypatch):
    on_a("cpu", monkeypatch)
    assert [options_of(config_of(ask), 1) for ask in ("auto", False, True)] == [None, None, {}]


@pytest.mark.parametrize(
    ("ask", "processes", "hip", "graphs"),
    [
        ("auto", 1, None, True),
        ("auto", 2, None, False),
        ("auto", 1, "7.0", False),
        (True, 1, None, False),
        ("graphs", 2, None, True),
    ],
)
def test_a_step_is_recorded_where_one_process_has_a_gpu_of_nvidia_or_it_is_asked_for(
    monkeypatch, ask, processes, hip, graphs
):
    on_a("cuda", monkeypatch, hip)
    assert options_of(config_of(ask), processes)["triton.cudagraphs"] is graphs
    assert options_of(config_of(False), processes) is None


def test_few_steps_are_not_worth_a_compiler_unless_it_is_asked_for(monkeypatch):
    on_a("cuda", monkeypatch)
    few = [options_of(config_of(ask, steps=1999), 1) for ask in ("auto", True, "graphs")]
    assert few[0] is None and [how["triton.cudagraphs"] for how in few[1:]] == [False, True]


@pytest.mark.parametrize(
    ("field", "precision", "count", "last"),
    [
        ("unet", "bf16", 1, True),
        ("unet", "fp16", 1, True),
        ("unet", "fp32", 1, False),
        ("mlp", "bf16", 1, False),
        ("unet", "bf16", 2, False),
    ],
)
def test_convolutions_in_16_bits_have_channels_last(monkeypatch, field, precision, count, last):
    on_a("cuda", monkeypatch)
    for ask in ("auto", True, "graphs"):
        assert options_of(config_of(ask, field, precision), count)["force_layout_optimization"] is last


def test_a_run_that_goes_on_compiled_otherwise_says_so(tmp_path, capsys):
    command = ["train", "configs/checkerboard.yaml", "--run", str(tmp_path / "r"), *QUICK, "--figures", "false"]
    main([*command, "--train.stop-at", "2"])
    file = RunFolder(tmp_path / "r").environment
    before = json.loads(file.read_text())
    assert before["compiled"] == "not compiled" and "compiled" not in capsys.readouterr().out
    file.write_text(json.dumps({**before, "compiled": "compiled, in graphs"}))
    main(command)
    told = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("  compiled"))
    assert told.split("  ")[1:4] == ["compiled", "compiled, in graphs", "not compiled"]


def test_every_training_of_a_process_is_compiled(monkeypatch):
    """torch keeps eight versions of a function, and those after them would be none, without a word."""
    compiled, plain = [], torch.compile

    def backend(graph, inputs):
        compiled.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", lambda call, dynamic, options: plain(call, backend=backend, dynamic=dynamic))
    config = config_of(True)
    try:
        for count in range(1, 11):
            AcceleratorState._reset_state(reset_partial_state=True)
            accelerator = Accelerator(cpu=True, mixed_precision="bf16")  # wraps each field anew
            objective, source = build_objective(config), build_source(config)
            field = build_field(config, source.facts)
            data = source.load(torch.device("cpu"))
            train_step(start(strategy_of(accelerator), field, objective, data, Recipe(steps=3), {}))
            assert len(compiled) == count
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_how_a_run_is_compiled_is_told_in_words():
    both = {"triton.cudagraphs": True, "force_layout_optimization": True}
    assert [compiling.how_compiled(how) for how in (None, {}, {**both, "triton.cudagraphs": False}, both)] == [
        "not compiled",
        "compiled",
        "compiled, channels last",
        "compiled, in graphs, channels last",
    ]


def test_torch_knows_the_options():
    known = torch._inductor.list_options()  # of a GPU; told another, torch.compile would refuse it there
    assert {"triton.cudagraphs", "force_layout_optimization"} <= {*known}


def quickened(run, how, count, state):
    """The field that `flowimg sample` draws so many samples with, on this process."""
    return compiled(run, how, count, state)


def test_many_samples_are_worth_a_compiler(tiny, monkeypatch):
    run = open_run(str(tiny.points), "ema", None, torch.device("cpu"))
    monkeypatch.setattr(compiling, "pick_device", lambda: SimpleNamespace(type="cuda"))
    alone, last = (SimpleNamespace(process_index=many - 1, num_processes=many, device=None) for many in (1, 2))
    how = Sample(run="r", num_steps=50, batch_size=70)
    assert quickened(run, how, 80 * 70, alone).sizes == (70, 140)
    assert quickened(run, how, 80 * 70 - 1, alone) is run.field and quickened(run, how, 0, alone) is run.field
    # each process has its share
    assert quickened(run, how, 2 * 80 * 70, last).sizes == (70, 140)
    assert quickened(run, how, 2 * 80 * 70 - 2, last) is run.field
    # many in a batch are few calls
    assert quickened(run, Sample(run="r", num_steps=100), 20_000, alone) is run.field
    asked = Sample(run="r", compile=True)
    assert quickened(run, asked, 30, alone).sizes == (30, 60)


@pytest.mark.parametrize("verb", ["sample", "evaluate"])
def test_drawing_without_a_compiler_is_refused_before_anything_is_written(tiny, tmp_path, monkeypatch, capsys, verb):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    out = ["--out", str(tmp_path / "out")] if verb == "sample" else []
    with pytest.raises(SystemExit) as stop:
        main([verb, str(tiny.points), *out, "--compile", "true"])
    assert stop.value.code == 4 and "--compile needs a C++ compiler" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_only_whole_batches_go_through_the_compiled_field(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda field, dynamic: lambda x, t, cond: field(x, t, cond) + 1)
    field = compiling.Compiled(MLPField(2, num_classes=3, width=8, depth=1), 4)
    for size, more in ((4, 1), (8, 1), (1, 0), (3, 0), (5, 0)):
        x, t, cond = torch.randn(size, 2), torch.rand(size), Condition(torch.zeros(size, dtype=torch.long))
        assert torch.equal(field(x, t, cond), field.field(x, t, cond) + more)


def test_without_a_compiler_that_is_said_at_once(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        main(["train", "configs/checkerboard.yaml", "--run", str(tmp_path / "r"), "--train.compile", "true"])
    assert stop.value.code == 4 and "train.compile needs a C++ compiler" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_a_compiled_run_learns_what_a_plain_one_does_and_either_goes_on_with_the_other(tmp_path, capsys):
    for name, compile in (("plain", "false"), ("compiled", "true")):
        command = ["train", "configs/checkerboard.yaml", "--run", str(tmp_path / name), *QUICK, "--figures", "false"]
        main([*command, "--train.compile", compile, "--train.stop-at", "2"])
        assert (", compiled" in capsys.readouterr().out) == (name == "compiled")
    plain, compiled = (
        load_file(tmp_path / n / "checkpoints/step_00000002/weights.safetensors") for n in ("plain", "compiled")
    )
    assert plain.keys() == compiled.keys()
    assert max(float((plain[k] - compiled[k]).abs().max()) for k in plain) < 1e-5
    main([*command, "--train.compile", "false"])
    assert "train.compile" in capsys.readouterr().out  # a warning, no refusal
    losses = [record["loss"] for record in RunFolder(tmp_path / "compiled").records()]
    main(["train", "configs/checkerboard.yaml", "--run", str(tmp_path / "plain"), *QUICK, "--figures", "false"])
    assert losses == pytest.approx([record["loss"] for record in RunFolder(tmp_path / "plain").records()], rel=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_a_compiled_field_draws_the_same_pictures_to_a_grey_level(tiny, tmp_path):
    for compile in ("false", "true"):
        how = ["--count", "11", "--batch-size", "4", "--num-steps", "5", "--precision", "fp32", "--guidance", "2"]
        main(["sample", str(tiny.classes), *how, "--out", str(tmp_path / compile), "--compile", compile])
    plain, compiled = (
        np.stack([np.array(Image.open(file), dtype=int) for file in sorted((tmp_path / name / "images").iterdir())])
        for name in ("false", "true")
    )
    assert len(plain) == 11 and np.abs(plain - compiled).max() <= 1 and plain.std() > 10
