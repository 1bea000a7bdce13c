"""Names of classes, files, folders and runs, whatever is in them: used, and written so that they can be read."""

import html
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pictures_made import content, find, picture, samples, tar
from survival import words
from tiny import write_settings

from flowimg.cli import main
from flowimg.errors import DataError
from flowimg.jobs import report
from flowimg.names import in_markdown, no_text, on_disk, one_line, printed, text_of, unprintable, word
from flowimg.runs.folder import RunFolder

CAFE, ODD = b"caf\xc3\xa9", b"caf\xe9"
"""The same name in UTF-8, and as a system of the nineties wrote it."""


def folders(root, *names, count=3, size=(8, 8)):
    """A folder of pictures for each of these names, given as bytes."""
    for number, name in enumerate(names):
        os.makedirs(os.path.join(os.fsencode(root), name))
        for one in range(count):
            with open(os.path.join(os.fsencode(root), name, b"%d.png" % one), "wb") as file:
                file.write(content(picture(10 * number + one, size)))
    return root


# --- the rules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("café", "café", "café"),
        ("caf\udcc3\udca9", "café", "café"),  # as a locale without UTF-8 reads it
        ("caf\udce9", r"caf\xe9", r"caf\xe9"),
        ("猫", "猫", "猫"),
        ("a\nb", "a\nb", r"a\nb"),
        ("\x1b[31m", "\x1b[31m", r"\x1b[31m"),
        ("a\u202eb\u2028", "a\u202eb\u2028", r"a\u202eb\u2028"),
        ("a\nb\udce9é", "a\nb\\xe9é", r"a\nb\xe9é"),
    ],
)
def test_a_name_as_text_and_in_a_line(name, text, line):
    assert (text_of(name), one_line(name)) == (text, line)
    assert text_of(text) == text and one_line(line) == line


def test_half_a_letter_is_written_too():
    assert one_line("\ud83dx") == r"\ud83dx" and printed("\ud83d é") == r"\ud83d é"


@pytest.mark.parametrize(
    "name",
    [
        "run", "my run #1", "it's", 'say "hi"', "$HOME", "a;b&c|d", "back\\slash", "~", "*", "été", "猫 \u3000",
        "line\nbreak", "it's\n\\x", "bell\x07 and \x1b[31m red", "tab\t", "-dash", "--run", "-\n", "caf\udce9\n",
    ],
)  # fmt: skip
def test_a_name_in_a_command_is_one_word_of_one_line_and_no_option(name):
    shell = shutil.which("bash")
    if shell is None:
        pytest.skip("needs bash")
    line = word(Path(name))
    assert "\n" not in line and line.isprintable()
    done = subprocess.run([shell, "-c", f"printf %s {line}"], stdout=subprocess.PIPE)
    assert not line.startswith("-") and Path(os.fsdecode(done.stdout)) == Path(name)
    if name.isprintable():
        assert [Path(one) for one in shlex.split(f"x {line} # y", comments=True)[1:]] == [Path(name)]


@pytest.mark.parametrize(
    "name", ["animals-nature", "*a* _b_", "<b>x</b>", "$x$ `y`", "[a](b)", "Ωμ, é", "a\nb", "&amp;"]
)
def test_a_name_in_markdown_is_shown_as_it_is(name):
    text = in_markdown(name)
    assert html.unescape(text) == one_line(name) and not set(text.replace("&#", "")) & set("*_<>$`[]()\\&\n")


def test_what_was_typed_is_escaped_wherever_it_occurs():
    names = unprintable(["train", "--run=my\nruns/\x1b[2Jx", "--data.source", "ab", "--out", "caf\udce9"])
    said = printed("a\nb of my\nruns/\x1b[2Jx/samples: caf\udce9\n", names)
    assert said == "a\nb of my\\nruns/\\x1b[2Jx/samples: caf\\xe9\n"


def test_what_cannot_be_kept_is_refused_with_the_way_out(monkeypatch):
    assert no_text("café") is None and no_text("a\nb") is None
    assert "not UTF-8: rename it" in no_text("caf\udce9") and "not UTF-8" in no_text("\ud83d")
    assert "locale" in no_text("caf\udcc3\udca9") and "LC_ALL" in no_text("caf\udcc3\udca9")
    assert "zero byte" in no_text("a\0b")
    monkeypatch.setattr("os.fsencode", lambda path: str(path).encode("ascii"))
    with pytest.raises(Exception, match=r"^café cannot be the name of a file in this locale.*LC_ALL=C.UTF-8$"):
        on_disk("café")


# --- classes and files -----------------------------------------------------------------------------------------------


def test_classes_of_folders_are_text_whatever_the_locale(tmp_path):
    found = find(folders(tmp_path, ODD, b"tea", "猫".encode(), CAFE, b"a\nb"))
    assert found.classes == ("a\nb", r"caf\xe9", "café", "tea", "猫")
    assert "5 classes (a folder each): a\\nb, caf\\xe9, café, tea, 猫" in found.story


@pytest.mark.parametrize("names", [(ODD, rb"caf\xe9", b"tea"), (b"\xff", rb"\xff")])
def test_two_folders_that_would_be_one_class_are_refused(names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"^data.source . has two folders whose names are both written .*: rename one$"):
        find(folders(Path("."), *names))


def test_two_classes_that_look_alike_stay_two(tmp_path, capsys):
    main(["data", "check", str(folders(tmp_path, b"a\nb", rb"a\nb")), "--json"])
    assert json.loads(capsys.readouterr().out)["classes"] == {"a\nb": 3, r"a\nb": 3}


def test_labels_of_shards_that_are_not_utf_8(tmp_path):
    files = samples(0, 4)
    latin = list(files)
    for number, label in enumerate((ODD, ODD, CAFE, b"tea")):
        latin.insert(2 * number + 1, (f"{number:06d}.cls", label))
    assert find(tar(tmp_path / "latin.tar", latin)).classes == (r"caf\xe9", "café", "tea")
    half = list(files)
    for number, label in enumerate((r'"\ud83d"', r'"caf\u00e9"', '"tea"', '"tea"')):
        half.insert(2 * number + 1, (f"{number:06d}.json", f'{{"kind": {label}}}'.encode()))
    assert find(tar(tmp_path / "half.tar", half), label_column="json.kind").classes == (r"\ud83d", "café", "tea")


ALL = [ODD, CAFE, b"a\nb", b"\x1b[31mred", b"$x_1$", b"_under", "猫".encode(), b"-dash", b"it's `<b>`"]


HEADS = {
    *("warning", "run", "machine", "data", "field", "flow", "training", "sees", "pictures", "weights", "diffusers"),
    "next",
}
"""What the lines of a run begin with."""


@pytest.fixture(scope="module")
def odd_run(once):
    """A run on classes with names of every kind."""

    def train(folder):
        folders(folder / "pictures", *ALL)
        data = {"kind": "images", "source": str(folder / "pictures"), "held_out": 2}
        settings = write_settings(folder / "a.yaml", data=data, train={"steps": 1, "sample_every": 100})
        out, sys.stdout = sys.stdout, io.StringIO()
        try:
            main(["train", str(settings), "--run", str(folder / "run")])
            (folder / "words.txt").write_text(sys.stdout.getvalue())
        finally:
            sys.stdout = out

    return once("odd-names", train)


def test_names_of_every_kind_are_trained_on_and_kept_as_they_are(odd_run):
    classes = ["\x1b[31mred", "$x_1$", "-dash", "_under", "a\nb", r"caf\xe9", "café", "it's `<b>`", "猫"]
    run = odd_run / "run"
    state = (run / "checkpoints" / "step_00000001" / "state.json").read_text(encoding="utf-8")
    assert json.loads(state)["classes"] == classes
    assert json.loads((run / "model" / "model_index.json").read_text(encoding="utf-8"))["classes"] == classes
    card = html.unescape((run / "model" / "README.md").read_text(encoding="utf-8")).split("\n")
    assert any(r"\x1b[31mred, $x_1$, -dash, _under, a\nb, caf\xe9, café" in line for line in card)


def test_a_terminal_gets_lines_without_control_characters(odd_run):
    lines = (odd_run / "words.txt").read_text().split("\n")
    assert lines.pop() == "" and all(line.isprintable() for line in lines)
    heads = {line[:10].rstrip() for line in lines if not line.startswith("step ")}
    assert heads - {"left"} == HEADS


@pytest.mark.parametrize("label", ["nope", "a\nc"])
def test_a_class_that_is_none_is_refused_in_one_printable_line(label, odd_run, refused):
    status, said = refused("sample", odd_run / "run", "--label", label)
    assert status == 2 and said.isprintable()


@pytest.mark.parametrize("label", ["a\nb", r"caf\xe9", "-dash"])
def test_samples_of_a_class_by_its_name(label, odd_run, tmp_path, capsys):
    more = ["--count", "1", "--num-steps", "1", "--out", str(tmp_path / "s")]
    main(["sample", str(odd_run / "run"), f"--label={label}", *more])
    assert json.loads((tmp_path / "s" / "samples.json").read_text(encoding="utf-8"))["label"] == label


@pytest.mark.parametrize("place", ["caf\udce9", "a\nb"])
def test_a_folder_for_diffusers_from_within_a_run_of_any_name(place, odd_run, tmp_path, monkeypatch):
    shutil.copytree(odd_run / "run", tmp_path / place)
    monkeypatch.chdir(tmp_path / place)
    main(["export", ".", "../out"])
    card = html.unescape((tmp_path / "out" / "README.md").read_text(encoding="utf-8")).split("\n")
    assert f"# {one_line(place)}" in card
    main(["report", "."])
    page = (tmp_path / place / "report.html").read_bytes().decode("utf-8")
    assert "flowimg evaluate ." in page


@pytest.mark.slow
def test_a_run_in_a_locale_without_utf_8_is_the_same_run(tmp_path):
    folders(tmp_path / "pictures", CAFE, "猫".encode(), ODD, count=4)
    data = {"kind": "images", "source": "pictures", "held_out": 2}
    write_settings(tmp_path / "a.yaml", data=data, train={"steps": 1, "sample_every": 9}, figures=True)
    told = []
    for run, locale in {"a": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "b": {}}.items():
        command = [sys.executable, "-m", "flowimg", "train", "a.yaml", "--run", run]
        done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **locale}, capture_output=True)
        assert done.returncode == 0 and done.stderr == b"", done.stderr
        state = json.loads((tmp_path / run / "checkpoints/step_00000001/state.json").read_text(encoding="utf-8"))
        told.append((state["classes"], state["data"], (tmp_path / run / "figures/classes.png").read_bytes()))
        assert "caf\\xe9, café, 猫" in html.unescape((tmp_path / run / "model/README.md").read_text(encoding="utf-8"))
    assert told[0] == told[1]


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ["train", "configs/checkerboard.yaml", "--run", "caf\udce9"],
        ["config", "configs/digits.yaml", "--data.source=caf\udce9/x"],
        ["data", "check", "caf\udce9"],
        ["sample", "runs/x", "--label", "caf\udce9"],
        *([verb, "caf\udce9"] for verb in ("train", "sample", "invert", "report", "play")),
    ],
)
def test_a_setting_that_is_not_utf_8_is_refused_in_one_short_sentence(args, refused):
    status, said = refused(*args)
    assert status == 2 and len(said) < 200
    assert r"caf\xe9" in said and "which is not UTF-8" in said


@pytest.mark.parametrize("args", [["sample"], ["evaluate"], ["report"], ["train"]])
def test_a_line_break_in_what_was_typed_makes_no_second_line(args, refused, tmp_path):
    status, said = refused(*args, tmp_path / "a\nb\x1b[2J")
    assert status == 2 and r"a\nb\x1b[2J" in said


def test_settings_files_are_utf_8_whatever_the_locale(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.yaml").write_bytes(
        "run: café  # übung\ndata: {kind: images, classes: [猫]}\nfield: {kind: unet}".encode()
    )
    monkeypatch.setattr("io.text_encoding", lambda encoding, level=2: encoding or "ascii")
    main(["config", str(tmp_path / "a.yaml")])
    told = yaml.safe_load(capsys.readouterr().out)
    assert (told["run"], told["data"]["classes"]) == ("café", ["猫"])


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_that_lacks_a_letter_gets_it_escaped(encoding, tmp_path, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding, "strict")
    monkeypatch.setattr("sys.stdout", out)
    main(["data", "check", str(folders(tmp_path, "猫".encode(), b"tea"))])
    assert rb"\u732b    ###" in out.buffer.getvalue()


# --- commands to be copied -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["my run #1", "it's $HOME; x", "-dash", "a\nb"])
def test_the_commands_at_the_end_of_a_run_name_it(name, tmp_path, monkeypatch, capsys, sketches):
    shutil.copytree(Path(__file__).parents[1] / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    short = ["--train.steps", "1", "--train.snapshots", "1", "--train.checkpoint-every", "1"]
    main([str(one) for one in words(name, *short)])
    out = capsys.readouterr().out.split("\n")
    sample, evaluate = next(line for line in out if line.startswith("next "))[10:].replace("$'", "'").split("; flowimg")
    averages = next(line for line in out if line.startswith("averages "))
    assert f"(flowimg ema {word(name)} lists" in averages
    as_typed = name if name.isprintable() else one_line(name)
    for words_of in (shlex.split(sample)[1:], shlex.split(evaluate)):
        assert [str(Path(one)) for one in words_of[1:]] == [as_typed]
    assert all(line.isprintable() for line in out)
    main(["ema", *([name] if name[0] != "-" else [f"./{name}"])])
    assert f"use one   flowimg sample {word(name)} --weights" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["my run", 'it\'s "x"', "-dash", "a\nb", "b\\n"])
def test_the_commands_of_a_report_name_the_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(Path(name))
    folder.model.mkdir(parents=True)
    (folder.model / "model_index.json").write_text("{}")
    config = type("C", (), {"train": type("T", (), {"steps": 3})})
    *shell, python = [command for _, command in report._commands(folder, config, True)]
    assert all(word(name) in command and command.isprintable() for command in shell)
    lines = python.split("\n")
    assert eval(lines[-1].partition("from_pretrained")[2]) == f"{name}/model" and len(lines) == 3
