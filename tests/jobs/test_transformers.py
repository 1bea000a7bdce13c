"""Runs of transformers, from their settings to what stock diffusers draws."""

import json
import subprocess
import sys
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from survival import go_on
from tiny import write_settings

import flowimg
from flowimg.cli import main
from flowimg.jobs.card import card_of
from flowimg.runs.opening import open_run
from flowimg.sampling.pipeline import FLOW_MAP

SMALL = {"width": 32, "depth": 2, "heads": 2, "zero_output": False}
SEEDS = [3, 4, 5]
CPU = torch.device("cpu")
needs_flow_map = pytest.mark.skipif(not hasattr(diffusers, FLOW_MAP), reason="this diffusers lacks the scheduler")

STRANGER = """
import sys
sys.modules["flowimg"] = None  # whoever imports it fails
import numpy as np, torch
from diffusers import DiffusionPipeline
folder, out = sys.argv[1:]
pipeline = DiffusionPipeline.from_pretrained(folder)
pipeline.set_progress_bar_config(disable=True)
drawn = {}
for steps in (1, 2, 7, 50):
    for scale in (1.0, 2.5):
        generators = [torch.Generator().manual_seed(seed) for seed in (3, 4, 5)]
        labels = pipeline.get_label_ids(["7", "0", "9"])
        drawn[f"{steps} {scale}"] = pipeline(
            labels, generator=generators, guidance_scale=scale, num_inference_steps=steps, output_type="np"
        ).images
np.savez(out, **drawn)
"""


def trained(folder, kind, **more):
    labels = more.pop("labels", True)
    path = write_settings(
        folder / f"{kind}.yaml", labels=labels, field={"kind": kind, **SMALL, **more}, train={"steps": 3}
    )
    main(["train", str(path), "--run", str(folder / kind)])
    return folder / kind


@pytest.fixture(scope="module")
def dit(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("dit"), "dit")


@pytest.fixture(scope="module")
def jit(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("jit"), "jit", class_tokens=3)


def ours(run, steps, scale, labels=("7", "0", "9")):
    """The pictures of flowimg in [0, 1], (B, H, W, C), each of a class of its own."""
    drawn = [
        flowimg.load(run).sample(1, seed=seed, label=label, num_steps=steps, guidance=scale, precision="fp32").x
        for seed, label in zip(SEEDS, labels, strict=True)
    ]
    return (torch.cat(drawn) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


@pytest.mark.slow
@needs_flow_map
def test_diffusers_alone_draws_the_pictures_of_flowimg_by_name_with_guidance_in_any_number_of_steps(dit, tmp_path):
    command = [sys.executable, "-c", STRANGER, dit / "model", tmp_path / "drawn.npz"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    drawn = np.load(tmp_path / "drawn.npz")
    for steps in (1, 2, 7, 50):
        for scale in (1.0, 2.5):
            np.testing.assert_allclose(drawn[f"{steps} {scale}"], ours(dit, steps, scale), atol=1e-6)
    assert np.abs(drawn["7 1.0"] - drawn["7 2.5"]).max() > 1e-3 and drawn["50 1.0"].std() > 0.1


@needs_flow_map
def test_the_example_on_the_card_runs_and_says_what_the_pipeline_does(dit, tmp_path):
    card = (dit / "model" / "README.md").read_text()
    assert "A transformer (DiT) of" in card and "the pipeline guides at 4" in card and "no guidance interval" in card
    assert "The classes, in order: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9." in card and "FlowMatch" not in card
    (code,) = card.split("```python\n")[1:]
    names = {}
    exec(code.split("```")[0].replace("FOLDER", str(dit / "model")).replace("=50", "=2"), names)
    assert names["picture"].size == (8, 8)
    index = json.loads((dit / "model" / "model_index.json").read_text())
    assert index["id2label"] == {str(number): str(number) for number in range(10)}


@needs_flow_map
def test_without_classes_the_free_class_is_drawn(tmp_path):
    run = trained(tmp_path, "dit", labels=False)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(run / "model")
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    drawn = pipeline(
        [1000] * 3, generator=generators, guidance_scale=1.0, num_inference_steps=4, output_type="np"
    ).images
    np.testing.assert_allclose(drawn, ours(run, 4, 1.0, labels=[None] * 3), atol=1e-6)
    assert "pipeline([1000], num_inference_steps=50, guidance_scale=1.0)" in (run / "model" / "README.md").read_text()


def test_a_network_that_predicts_pictures_is_drawn_by_another_scheduler(tmp_path):
    run = trained(tmp_path, "dit", output="x")
    pipeline = diffusers.DiffusionPipeline.from_pretrained(run / "model")
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    drawn = pipeline(
        [7, 0, 9], generator=generators, guidance_scale=1.0, num_inference_steps=18, output_type="np"
    ).images
    assert np.abs(drawn - ours(run, 18, 1.0)).mean() < 0.02 and drawn.std() > 0.1
    card = (run / "model" / "README.md").read_text()
    assert "DPM-Solver++" in card and "num_inference_steps=20," in card and "Take at most 20 steps" in card


def test_an_older_diffusers_is_told_in_a_sentence_and_training_goes_on(dit, tmp_path, monkeypatch, refused, capsys):
    monkeypatch.setattr("flowimg.sampling.pipeline.FLOW_MAP", "NotThereYetScheduler")
    status, said = refused("export", dit, tmp_path / "out")
    assert status == 4 and "has no NotThereYetScheduler" in said and not (tmp_path / "out").exists()
    run = trained(tmp_path, "dit")
    assert "has no NotThereYetScheduler" in capsys.readouterr().out and not (run / "model").exists()


@needs_flow_map
def test_a_network_comes_back_by_pretrained(dit, tmp_path):
    field = {"kind": "dit", "pretrained": str(dit / "model"), "zero_output": False}
    path = write_settings(tmp_path / "b.yaml", field=field)
    main(["train", str(path), "--run", str(tmp_path / "b"), "--train.stop-at", "1"])
    ema = load_file(dit / "checkpoints" / "step_00000003" / "ema.safetensors")
    begun = load_file(tmp_path / "b" / "checkpoints" / "step_00000000" / "weights.safetensors")
    assert ema.keys() == begun.keys() and all(torch.equal(ema[name], begun[name]) for name in ema)
    assert open_run(str(tmp_path / "b"), "ema", None, CPU).field.transformer.config.num_layers == 2
    main(["train", str(path), "--run", str(tmp_path / "b")])  # continues without reading it again


@needs_flow_map
def test_a_network_that_predicts_something_else_is_refused(dit, tmp_path, refused):
    field = {"kind": "dit", "pretrained": str(dit / "model"), "output": "x"}
    status, said = refused("train", write_settings(tmp_path / "b.yaml", field=field), "--run", tmp_path / "b")
    assert status == 3 and said.endswith("predicts v: give field.output v")


def test_classes_that_the_pipeline_cannot_tell_apart_are_numbered_on_the_card(dit):
    run = open_run(str(dit), "ema", None, CPU)
    facts = run.facts._replace(classes=("white shark, great", "b", *"cdefghij"), absent=(0,))
    card = card_of(replace(run, facts=facts), None, 50, "ema")
    assert 'get_label_ids(["1"])' in card.replace("'", '"')
    assert "The classes, in order: 0: white shark, great; 1: b; 2: c;" in card and "by its number in front" in card


def test_our_own_transformer_draws_and_is_not_exported(jit, refused, tmp_path):
    assert np.abs(ours(jit, 3, 1.0) - ours(jit, 3, 2.5)).max() > 1e-3 and not (jit / "model").exists()
    status, said = refused("export", jit, tmp_path / "out")
    assert status == 2 and "has a field of kind jit, with which no pipeline of diffusers draws" in said


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"field": {"kind": "dit", **SMALL, "width": 30}}, 2, "width 30 is no multiple of 4 x heads 2: give 32"),
        ({"field": {"kind": "jit", **SMALL, "patch": 3}}, 3, "cannot be cut into patches of field.patch 3"),
        ({"field": {"kind": "dit", **SMALL, "patch": 3}}, 3, "cannot be cut into patches of field.patch 3"),
        ({"field": {"kind": "dit", **SMALL, "pretrained": "/nowhere"}}, 3, "hub id of a DiTTransformer2DModel"),
        (
            {"field": {"kind": "jit", **SMALL, "output": "x"}, "flow": {"path": {"kind": "cosine"}}},
            2, "field.output x is for the",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_sentence(changes, status, words, tmp_path, refused):
    flow = changes.pop("flow", {})
    file = write_settings(tmp_path / "a.yaml", **changes)
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **flow}))
    found, said = refused("train", file, "--run", tmp_path / "a")
    assert found == status and words in said


@pytest.mark.parametrize("kind", ["dit", "jit"])
def test_a_run_that_continues_is_the_run_bit_for_bit_dropout_and_all(kind, tmp_path):
    field = {"kind": kind, **SMALL, "dropout": 0.2, "gradient_checkpointing": True}
    path = write_settings(tmp_path / "a.yaml", field=field, train={"steps": 4}, optim={"kind": "muon"})
    main(["train", str(path), "--run", str(tmp_path / "whole")])
    for stop in ("2", "4"):
        main(["train", str(path), "--run", str(tmp_path / "cut"), "--train.stop-at", stop])
    for name in ("weights", "ema"):
        whole, cut = (
            load_file(tmp_path / run / "checkpoints" / "step_00000004" / f"{name}.safetensors")
            for run in ("whole", "cut")
        )
        assert all(torch.equal(whole[key], cut[key]) for key in whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dit", "jit"])
def test_two_processes_train_what_one_does(kind, tmp_path):
    script = tmp_path / "verb.py"
    script.write_text("import sys\nfrom flowimg.cli import main\nmain(sys.argv[1:])\n")
    path = write_settings(
        tmp_path / "a.yaml", field={"kind": kind, **SMALL}, train={"steps": 4}, optim={"kind": "muon"}
    )
    losses = []
    for processes in (1, 2):
        run = tmp_path / str(processes)
        go_on(processes, script, "train", str(path), "--run", str(run))
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert len(losses[0]) == 4 and losses[0][0] != losses[0][3]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
