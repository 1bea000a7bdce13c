"""RUN/model and `flowimg export`: diffusers reads them by itself, and draws what flowimg draws."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from diffusers import UNet2DModel
from safetensors.torch import load_file
from tiny import write_settings

from flowimg.cli import main
from flowimg.fields.guidance import guided
from flowimg.flow.condition import Condition
from flowimg.flow.solvers import EULER
from flowimg.flow.times import diffusers_grid, uniform_grid
from flowimg.runs.opening import open_run
from flowimg.sampling.pipeline import LabelPipeline
from flowimg.sampling.sampler import Sampler
from flowimg.settings.reading import validate
from flowimg.settings.run import Config
from flowimg.settings.verbs import Sample

SEEDS = [3, 4, 5, 6]
CPU = torch.device("cpu")

STRANGER = """
import sys
sys.modules["flowimg"] = None  # whoever imports it fails
import numpy as np, torch
from diffusers import DiffusionPipeline, UNet2DModel
folder, conditional, out = sys.argv[1:]
try:
    import flowimg
    raise SystemExit("flowimg was imported")
except ImportError:
    pass
pipeline = DiffusionPipeline.from_pretrained(folder)
pipeline.set_progress_bar_config(disable=True)
generators = [torch.Generator().manual_seed(seed) for seed in (3, 4, 5, 6)]
drawn = pipeline(batch_size=4, generator=generators, num_inference_steps=50, output_type="np").images
unet = UNet2DModel.from_pretrained(conditional, subfolder="unet")
noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
output = unet(noise, torch.tensor([400.0]), class_labels=torch.tensor([7])).sample
np.savez(out, drawn=drawn, output=output.detach().numpy())
"""


@pytest.fixture(scope="module")
def stranger(tiny, once):
    """What a process without flowimg draws from RUN/model of a plain run, and computes with that of another."""

    def draw(folder):
        command = [sys.executable, "-c", STRANGER, tiny.plain / "model", tiny.classes / "model", folder / "drawn.npz"]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    return np.load(once("stranger", draw) / "drawn.npz")


def ours(run, labels=None, scale=1.0, steps=50, grid=diffusers_grid):
    """flowimg's samples as diffusers returns pictures: (B, H, W, C) in [0, 1]."""
    trained = open_run(str(run), "ema", None, CPU)
    cond = Condition(None if labels is None else torch.tensor(labels))
    velocity = guided(trained.field, scale)
    (batch,) = Sampler(velocity, trained.facts.shape, EULER, grid(steps)).samples(SEEDS, cond)
    return (batch.x_1 / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def levels(pixels):
    return np.round(np.asarray(pixels) * 255).astype(int)


@pytest.mark.slow
def test_diffusers_alone_draws_the_pictures_of_flowimg(tiny, stranger, tmp_path):
    np.testing.assert_allclose(stranger["drawn"], ours(tiny.plain), atol=1e-5)
    assert ours(tiny.plain).std() > 0.1  # something was drawn
    out = tmp_path / "out"
    main(
        [
            "sample",
            str(tiny.plain),
            "--seed",
            "3",
            "--count",
            "4",
            "--format",
            "npy",
            "--times",
            "diffusers",
            "--out",
            str(out),
        ]
    )
    drawn = np.load(out / "samples.npy")
    assert np.abs(levels(stranger["drawn"]) - drawn).max() <= 1


@pytest.mark.slow
def test_the_network_of_a_conditional_run_is_read_by_diffusers_alone(tiny, stranger):
    field = open_run(str(tiny.classes), "ema", None, CPU).field
    noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    v = field(noise, torch.tensor([0.6]), Condition(torch.tensor([7])))
    np.testing.assert_allclose(-stranger["output"], v.numpy(), atol=1e-5)


@pytest.mark.parametrize(("scale", "steps"), [pytest.param(1.0, None, marks=pytest.mark.slow), (2.0, 5)])
def test_the_pipeline_of_a_conditional_run_draws_the_pictures_of_flowimg(tiny, tmp_path, scale, steps):
    folder, asked, how = tiny.classes / "model", {}, []  # both take 50 steps by themselves
    if steps:
        folder, asked, how = tmp_path / "model", {"num_inference_steps": steps}, ["--num-steps", str(steps)]
        main(["export", str(tiny.classes), str(folder), *how])
        how += ["--precision", "fp32"]
    how += ["--times", "diffusers"]
    pipeline = LabelPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)

    def drawn(labels, **more):
        generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
        return pipeline(labels, generator=generators, guidance_scale=scale, **asked, **more).images

    images = drawn([4, 4, 4, 4], output_type="np")
    np.testing.assert_allclose(images, ours(tiny.classes, [4] * 4, scale, steps or 50), atol=1e-5)
    np.testing.assert_allclose(
        drawn(["3", 4, "5", 6], output_type="np"), ours(tiny.classes, [3, 4, 5, 6], scale, steps or 50), atol=1e-5
    )
    how += ["--label", "4", "--guidance", str(scale), "--seed", "3", "--count", "4", "--format", "npy"]
    main(["sample", str(tiny.classes), *how, "--out", str(tmp_path / "out")])
    assert np.abs(levels(images) - np.load(tmp_path / "out" / "samples.npy")).max() <= 1
    pictures = drawn([4, 4, 4, 4])
    assert (np.stack([np.array(picture) for picture in pictures])[..., None] == levels(images)).all()


def test_a_pipeline_knows_its_classes(tiny):
    pipeline = LabelPipeline.from_pretrained(tiny.classes / "model")
    assert list(pipeline.config["classes"]) == [str(digit) for digit in range(10)]
    for wrong, first in (("cat", "0, 1, 2"), (10, "0, 1, 2"), (-1, "1, 0, 2")):
        with pytest.raises(ValueError, match=f"is not a class: there are {first}"):
            pipeline([wrong])


@pytest.mark.parametrize("steps", [1, 7])
def test_an_export_draws_in_any_number_of_steps(tiny, tmp_path, steps, capsys):
    main(["export", str(tiny.plain), str(tmp_path / "model"), "--num-steps", "3"])
    assert f"{tmp_path / 'model'}/README.md" in capsys.readouterr().out
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "model")
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    drawn = pipeline(batch_size=4, generator=generators, num_inference_steps=steps, output_type="np").images
    np.testing.assert_allclose(drawn, ours(tiny.plain, steps=steps), atol=1e-5)


# --- the folder ------------------------------------------------------------------------------------------------------


def same_weights(model, checkpoint, name="ema"):
    ours = load_file(model / "unet" / "diffusion_pytorch_model.safetensors")
    theirs = load_file(checkpoint / f"{name}.safetensors")
    assert {f"unet.{key}" for key in ours} == set(theirs)
    return all(torch.equal(value, theirs[f"unet.{key}"]) for key, value in ours.items())


def test_every_checkpoint_comes_with_the_folder_of_its_averaged_weights(tmp_path):
    config = write_settings(tmp_path / "a.yaml", labels=False, train={"steps": 4})
    run = tmp_path / "run"
    for stop in ("2", "4"):
        main(["train", str(config), "--run", str(run), "--train.stop-at", stop])
        assert same_weights(run / "model", run / "checkpoints" / f"step_0000000{stop}")
        assert f"flowimg: {stop} steps of 16, averaged" in (run / "model" / "README.md").read_text()
        assert [path.name for path in run.glob(".model*")] == []
    assert not same_weights(run / "model", run / "checkpoints" / "step_00000002")
    assert not same_weights(run / "model", run / "checkpoints" / "step_00000004", "weights")
    for name, (step, weights) in {"raw": (2, "raw"), "old": (2, "ema")}.items():
        main(["export", str(run), str(tmp_path / name), "--step", str(step), "--weights", weights])
        checkpoint = run / "checkpoints" / "step_00000002"
        assert same_weights(tmp_path / name, checkpoint, "weights" if weights == "raw" else "ema")


def card(folder):
    """The front matter, the text, and the settings in it."""
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text, yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])


@pytest.mark.parametrize("name", ["plain", "classes"])
def test_the_card_is_one_that_the_hub_reads_and_tells_nothing_of_this_machine(tiny, name):
    front, text, settings = card(getattr(tiny, name) / "model")
    assert front["library_name"] == "diffusers" and "flow-matching" in front["tags"]
    assert str(tiny.folder) not in text and "/tmp" not in text and str(Path.home()) not in text.replace("/root", "~")
    assert validate(Config, settings, "card").run == name
    assert settings["train"]["batch_size"] == 16
    assert "![Samples at step 2](samples.png)" in text and (getattr(tiny, name) / "model" / "samples.png").exists()


@pytest.mark.parametrize("name", ["plain", "classes"])
def test_the_lines_on_the_card_work(tiny, name):
    _, text, _ = card(getattr(tiny, name) / "model")
    code = text.split("```python\n")[1].split("```")[0].replace("FOLDER", str(getattr(tiny, name) / "model"))
    space = {}
    exec(code.replace("num_inference_steps=50", "num_inference_steps=2"), space)
    assert space["picture"].size == (8, 8)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("name", ["plain", "classes"])
def test_another_number_of_steps_is_drawn_as_the_card_says(tiny, name, steps):
    """A single step divided by zero by the card's advice, a shift_terminal of 1 / 1."""
    run, space = getattr(tiny, name), {}
    _, text, _ = card(run / "model")
    _, use, other, *_ = text.split("```python\n")
    for code in (use, other):
        code = code.split("```")[0].replace("FOLDER", str(run / "model")).replace("N = 1", f"N = {steps}")
        exec(code.replace("num_inference_steps=50", "num_inference_steps=2"), space)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    asked = {"generator": generators, "num_inference_steps": steps, "output_type": "np"}
    asked |= {"labels": [4] * 4} if name == "classes" else {"batch_size": 4}
    drawn = space["pipeline"](**asked).images
    np.testing.assert_allclose(
        drawn, ours(run, [4] * 4 if name == "classes" else None, steps=steps, grid=uniform_grid), atol=1e-5
    )


def test_the_card_names_neither_where_the_pictures_nor_the_network_lay(tiny, tmp_path):
    from PIL import Image

    for number in range(24):
        path = tmp_path / "secret" / "birds" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), number * 10, dtype=np.uint8)).save(path)
    net = tmp_path / "secret" / "net"
    main(["export", str(tiny.plain), str(net)])
    config = write_settings(tmp_path / "a.yaml", labels=False, field={"kind": "unet", "pretrained": str(net)})
    source = str(tmp_path / "secret" / "birds")
    main(["train", str(config), "--run", str(tmp_path / "run"), "--data.source", source, "--train.stop-at", "1"])
    _, text, settings = card(tmp_path / "run" / "model")
    assert "secret" not in text and str(tmp_path) not in text
    assert settings["data"]["source"] == "birds" and settings["field"]["pretrained"] == "net"


def test_a_card_written_from_elsewhere_names_no_folder_of_this_machine(tmp_path, monkeypatch):
    for name in ("secret", "other"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "secret")
    (tmp_path / "secret" / "cache").mkdir()
    (tmp_path / "secret" / "data").mkdir()
    config = write_settings(tmp_path / "a.yaml", labels=False)
    main(["train", str(config), "--run", "run", "--data.cache", "cache", "--train.stop-at", "1"])
    monkeypatch.chdir(tmp_path / "other")
    main(["export", str(tmp_path / "secret" / "run"), "out"])
    _, text, settings = card(tmp_path / "other" / "out")
    assert "secret" not in text and str(tmp_path) not in text and settings["data"]["cache"] is None


def test_an_empty_folder_is_filled_even_the_one_stood_in(tiny, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    main(["export", str(tiny.plain), "."])
    assert UNet2DModel.from_pretrained(tmp_path / "here", subfolder="unet").config["sample_size"] == 8
    main(["export", str(tiny.plain), str(tmp_path / "a" / "b" / "c")])
    assert (tmp_path / "a" / "b" / "c" / "README.md").exists()


def test_nothing_beside_the_folder_is_taken_for_a_leftover(tiny, tmp_path):
    for name in (".out.local", ".out.123", ".out.before"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("mine")
    main(["export", str(tiny.plain), str(tmp_path / "out")])
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.123", ".out.before", ".out.local", "out"]
    assert len(list(tmp_path.glob(".out.*/mine.txt"))) == 3


def test_wrong_requests_are_one_sentence(tiny, tmp_path, refused):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for out in (tmp_path / "full", tmp_path / "full" / "mine.txt"):
        status, said = refused("export", tiny.plain, out)
        assert status == 2 and f"{out} exists and is not overwritten" in said
    for name in ("net", "a/b/c"):
        status, said = refused("export", tiny.plain, tmp_path / "new", "--push-to-hub", name)
        assert status == 2 and f"--push-to-hub {name} is not a repository" in said
    status, said = refused("export", tiny.points, tmp_path / "new")
    assert status == 2 and "with which no pipeline of diffusers draws" in said
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"


def test_what_cannot_be_uploaded_stays_and_is_one_sentence(tiny, tmp_path, monkeypatch, refused):
    import huggingface_hub

    def create_repo(self, *args, **kwargs):
        raise ConnectionError("no network\nand more of it")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    status, said = refused("export", tiny.plain, tmp_path / "out", "--push-to-hub", "me/net")
    assert status == 4
    assert "could not be uploaded to me/net: no network (after `hf auth login`, `hf upload me/net " in said
    assert UNet2DModel.from_pretrained(tmp_path / "out", subfolder="unet").config["sample_size"] == 8


def test_an_upload_is_of_the_folder_and_private_unless_said(tiny, tmp_path, monkeypatch, capsys):
    import huggingface_hub

    calls = []
    fake = SimpleNamespace(
        create_repo=lambda repo, private, exist_ok: calls.append((repo, private)),
        upload_folder=lambda repo_id, folder_path: calls.append((repo_id, Path(folder_path, "README.md").exists())),
    )
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    main(["export", str(tiny.plain), str(tmp_path / "out"), "--push-to-hub", "me/net"])
    main(["export", str(tiny.plain), str(tmp_path / "two"), "--push-to-hub", "me/net", "--private", "false"])
    assert calls == [("me/net", True), ("me/net", True), ("me/net", False), ("me/net", True)]
    assert "uploaded: https://huggingface.co/me/net" in capsys.readouterr().out


@pytest.mark.parametrize("at", ["save_pipeline", "card_of"])
def test_a_write_that_fails_leaves_the_old_folder_whole(at, tmp_path, monkeypatch, capsys):
    from flowimg.jobs import card
    from flowimg.sampling import pipeline

    config = write_settings(tmp_path / "a.yaml", labels=False, train={"steps": 4})
    run = tmp_path / "run"
    main(["train", str(config), "--run", str(run), "--train.stop-at", "2"])
    before = {path: path.read_bytes() for path in (run / "model").rglob("*") if path.is_file()}
    save = pipeline.save_pipeline

    def failing(folder, *args):
        if at == "save_pipeline":
            save(folder, *args)  # some of it is there
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr({"save_pipeline": pipeline, "card_of": card}[at], at, failing)
        main(["train", str(config), "--run", str(run)])  # trained and saved: a folder for diffusers less is no failure
    assert "is not of step 4 ([Errno 28] No space left" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in (run / "model").rglob("*") if path.is_file()} == before
    (run / ".model.1.tmp").mkdir()  # as a process leaves it that dies while it writes
    main(["train", str(config), "--run", str(run)])
    # though the checkpoint is there and nothing is left to train
    assert same_weights(run / "model", run / "checkpoints" / "step_00000004")
    assert list(run.glob(".model*")) == []
    assert json.loads((run / "model" / "model_index.json").read_text())["_class_name"] == "DDPMPipeline"


def test_the_steps_on_the_card_are_those_of_sample(tiny):
    scheduler = json.loads((tiny.plain / "model" / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["shift_terminal"] is None  # with which one step would divide by zero
    assert f"num_inference_steps={Sample(run='r').num_steps})" in (tiny.plain / "model" / "README.md").read_text()
