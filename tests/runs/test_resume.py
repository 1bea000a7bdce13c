"""What may go on, from where, with which changes; and run folders of strangers."""

import json
import struct
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from survival import status, words

from flowimg.cli import main
from flowimg.runs.folder import RunFolder
from flowimg.training import parts
from flowimg.training.checkpoint import problem

pytestmark = pytest.mark.usefixtures("sketches")


def train(run, *more, config="configs/checkerboard.yaml"):
    main([str(word) for word in words(run, *more, config=config)])


@pytest.fixture
def run(tmp_path, capsys):
    """A run that stopped after 4 of 8 steps."""
    train(tmp_path / "run", "--train.stop-at", "4")
    capsys.readouterr()
    return tmp_path / "run"


@pytest.fixture
def fails(capsys):
    def fails(run, *more):
        with pytest.raises(SystemExit) as stop:
            train(run, *more)
        error = capsys.readouterr().err
        assert "Traceback" not in error
        return stop.value.code, error

    return fails


def damage(path):
    file = path / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


def test_resume_with_nothing_to_resume_is_an_error(tmp_path, fails):
    code, error = fails(tmp_path / "run", "--resume")
    assert code == 2 and "holds nothing to resume" in error and not (tmp_path / "run").exists()


def test_resume_takes_the_newest_and_ends_as_without_it(run, capsys):
    train(run, "--resume")
    assert "continued from step 4" in capsys.readouterr().out


def test_resume_from_a_named_step_leaves_the_later_ones_aside(run, capsys):
    train(run, "--resume", "2")
    said = capsys.readouterr().out
    assert "continued from step 2" in said and "step_00000004 is past the step that is resumed from" in said
    assert problem(run / "checkpoints" / "left" / "step_00000004") is None
    assert [record["step"] for record in RunFolder(run).records()] == [2, 4, 6, 8]


def test_a_broken_checkpoint_that_was_named_is_an_error(run, fails):
    damage(run / "checkpoints" / "step_00000004")
    code, error = fails(run, "--resume", "4")
    assert code == 3 and "ema.safetensors has" in error
    code, error = fails(run, "--resume", "3")
    assert code == 3 and "no such checkpoint" in error


def test_broken_ones_passed_over_are_named_in_the_event(run, capsys):
    damage(run / "checkpoints" / "step_00000004")
    train(run)
    assert "step_00000004 is broken and was skipped: ema.safetensors" in capsys.readouterr().out
    assert "step_00000004 is broken" in RunFolder(run).events()[-1]["passed_over"][0]


def test_a_swapped_file_is_seen(run, capsys):
    weights, ema = (run / "checkpoints" / "step_00000004" / f"{name}.safetensors" for name in ("weights", "ema"))
    one, other = weights.read_bytes(), ema.read_bytes()
    assert len(one) == len(other)
    weights.write_bytes(other)
    ema.write_bytes(one)
    train(run)
    assert "step_00000004 is broken and was skipped: weights.safetensors was altered" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "value"), [("optim.lr", "0.1"), ("path.kind", "cosine"), ("seed", "3"), ("field.width", "9")]
)
def test_another_run_is_refused_with_a_table(run, fails, key, value, tmp_path):
    before = (run / "config.yaml").read_bytes()
    if key == "path.kind":
        copy = tmp_path / "c.yaml"
        copy.write_text(Path("configs/checkerboard.yaml").read_text() + "\npath: {kind: cosine}\n")
        with pytest.raises(SystemExit) as stop:
            train(run, config=copy)
        assert stop.value.code == 2
    else:
        code, error = fails(run, f"--{key}", value)
        lines = error.splitlines()
        assert code == 2 and lines[1].split() == ["flowimg:", "setting", "then", "now"]
        assert lines[2].split()[1:] == [key, lines[2].split()[2], value, "refused"] and f"--allow {key}" in error
    assert (run / "config.yaml").read_bytes() == before and status(run)["state"] == "done"


def test_a_change_that_is_allowed_by_name_goes_on_and_is_an_event(run, capsys):
    train(run, "--optim.lr", "0.1", "--allow", "optim.lr")
    assert "allowed" in capsys.readouterr().out
    assert RunFolder(run).events()[-1]["changed"] == {"optim.lr": [0.005, 0.1]}


def test_allowing_what_is_no_setting_is_an_error(run, fails):
    assert fails(run, "--allow", "optim.lrr")[1].count("did you mean optim.lr?") == 1


def test_a_network_of_another_shape_cannot_be_allowed(run, fails):
    code, error = fails(run, "--field.width", "9", "--allow", "field.width")
    assert code == 3 and "does not hold the network of its settings" in error


def test_another_batch_is_warned_and_counts_samples_on(run, capsys):
    train(run, "--train.batch-size", "64")
    assert "train.batch_size" in capsys.readouterr().out
    assert [record["samples"] for record in RunFolder(run).records()] == [96, 192, 320, 448]


def test_another_batch_goes_on_in_the_order_of_the_data(tmp_path):
    """48 x 4 + 64 x 4 samples: those that an epoch of the keyed order begins with, none twice, none left out."""
    from flowimg.data.order import sample_indices

    whole = sample_indices(0, 0, range(448), 448, 1000)
    first = sample_indices(0, 0, range(192), 192, 1000)
    rest = torch.cat([sample_indices(0, step, range(64), 64, 1000, 192 - 4 * 64) for step in range(4, 8)])
    assert torch.equal(torch.cat([first, rest]), whole)


def test_data_that_changed_are_refused_unless_allowed(tmp_path, capsys):
    from PIL import Image

    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(12):
        Image.new("L", (8, 8), number * 20).save(photos / f"{number}.png")
    config = tmp_path / "c.yaml"
    config.write_text(
        f"data: {{kind: images, source: {photos}, held_out: 2}}\n"
        "field: {kind: unet, channels: [32, 64], layers: 1}\ntrain: {steps: 4, batch_size: 4, sample_every: 100}\n"
        "grid: {count: 2, num_steps: 1}\nfigures: false\n"
    )
    main(["train", str(config), "--run", str(tmp_path / "run"), "--train.stop-at", "2"])
    Image.new("L", (8, 8), 255).save(photos / "3.png")
    with pytest.raises(SystemExit) as stop:
        main(["train", str(config), "--run", str(tmp_path / "run")])
    assert stop.value.code == 2 and "the data are not those" in capsys.readouterr().err
    main(["train", str(config), "--run", str(tmp_path / "run"), "--allow", "data"])
    assert "continued from step 2" in capsys.readouterr().out


# --- folders of strangers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["checkpoints", "samples", "metrics.jsonl"])
def test_a_link_out_of_the_run_is_not_written_through(run, where, tmp_path, fails):
    outside = tmp_path / "outside"
    (run / where).rename(outside)
    (run / where).symlink_to(outside)
    before = sorted(outside.iterdir()) if outside.is_dir() else outside.read_bytes()
    code, error = fails(run)
    assert code == 2 and "is a link out of the run's folder" in error
    assert before == (sorted(outside.iterdir()) if outside.is_dir() else outside.read_bytes())


def test_a_run_that_is_itself_a_link_is_a_run(run, tmp_path, capsys):
    (tmp_path / "link").symlink_to(run)
    train(tmp_path / "link")
    assert "continued from step 4" in capsys.readouterr().out


def forge(run, **state):
    path = run / "checkpoints" / "step_00000004"
    told = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**told, **state}))
    files = [file for file in path.iterdir() if file.name != "manifest.json"]
    (path / "manifest.json").write_text(json.dumps({file.name: parts.account_of(file) for file in files}))


@pytest.mark.parametrize("shape", [[2**60], [3, 2**20, 2**20], "x", [1.5], [], [-1]])
def test_a_forged_shape_takes_no_memory(run, shape, capsys):
    forge(run, shape=shape)
    with pytest.raises(SystemExit) as stop:
        main(["sample", str(run), "--count", "1"])
    assert stop.value.code == 3 and "impossible shape of the data" in capsys.readouterr().err


@pytest.mark.parametrize("buckets", [[[2**20, 8, 3]], [[8, 8]], "x", [[8, 8, 0]], [8], [[8, 8, 1.5]]])
def test_forged_buckets_take_no_memory(run, buckets, capsys):
    forge(run, buckets=buckets)
    with pytest.raises(SystemExit) as stop:
        main(["sample", str(run), "--count", "1"])
    assert stop.value.code == 3 and "impossible shape of the data" in capsys.readouterr().err


def test_forged_settings_of_a_giant_network_take_no_memory(run, capsys):
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("width: 8", "width: 900000"))
    with pytest.raises(SystemExit) as stop:
        main(["sample", str(run), "--count", "1"])
    assert stop.value.code == 3 and "does not hold the network" in capsys.readouterr().err


def test_an_optimiser_of_other_names_is_refused(run, fails):
    save_file({"exp_avg.nobody": torch.ones(1)}, run / "checkpoints" / "step_00000004" / "optimizer.safetensors")
    forge(run)
    code, error = fails(run)
    assert code == 3 and "does not fit" in error


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: !!python/object/apply:os.system ['touch hacked']", "not valid YAML"),
        ("a: &a [1, 2]\nb: [*a, *a, *a]", "aliases"),
        ("seed: 1\n" + "#" * 2**20, "longer than any settings"),
    ],
)
def test_settings_of_a_stranger_run_nothing_and_blow_nothing_up(text, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(SystemExit) as stop:
        main(["train", str(tmp_path / "c.yaml")])
    assert stop.value.code == 2 and words in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


def test_a_picture_that_claims_ten_billion_pixels_is_refused(tmp_path, capsys):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    png = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "bomb.png").write_bytes(png)
    config = tmp_path / "c.yaml"
    config.write_text(f"data: {{kind: images, source: {tmp_path / 'pictures'}, size: 8}}\nfield: {{kind: unet}}\n")
    with pytest.raises(SystemExit) as stop:
        main(["train", str(config), "--run", str(tmp_path / "run")])
    error = capsys.readouterr().err
    assert stop.value.code == 3 and "bomb" in error and "Traceback" not in error
