"""The verbs as a user meets them: exit status, one message that helps, and never a stack trace."""

import json
import os
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import get_type_hints

import pytest
import yaml

from flowimg import __version__
from flowimg.cli import VERBS, main
from flowimg.settings.evaluate import Evaluate
from flowimg.settings.reading import flatten, load
from flowimg.settings.run import Config
from flowimg.settings.verbs import Ema, Export, Figures, Interpolate, Invert, Likelihood, Play, Report, Sample

ROOT = Path(__file__).parents[1]
KNOWN = (
    "train, estimate, sample, interpolate, invert, inpaint, vary, export, ema, evaluate, likelihood, figures, report, "
    "play, experiment, data, config, doctor"
)
MOVED = "flowimg experiment has moved: run python examples/frequency/run.py (--help lists its options)"
DIGITS, BOARD = str(ROOT / "configs/digits.yaml"), str(ROOT / "configs/checkerboard.yaml")


@pytest.fixture
def complaint(capsys):
    """The only line that `flowimg ARGS` leaves, on stderr, and its exit status."""

    def complaint(*args):
        with pytest.raises(SystemExit) as stop:
            main(args)
        out, err = capsys.readouterr()
        assert out == ""
        lines = err.splitlines()
        assert len(lines) == 1, err
        assert lines[0].startswith("flowimg: ")
        return stop.value.code, lines[0].removeprefix("flowimg: ")

    return complaint


@pytest.fixture
def resolved(capsys):
    """The settings that `flowimg config ARGS` prints, as flat keys and values."""

    def resolved(*args):
        main(["config", *args])
        out, err = capsys.readouterr()
        assert err == ""
        values = yaml.safe_load(out)
        return {key: _at(values, key) for key in flatten(load(args[0]))}

    return resolved


def _at(values, key):
    for part in key.split("."):
        values = values[part]
    return values


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["trian"], "flowimg has no verb trian: did you mean train?"),
        (["Train"], "flowimg has no verb Train: did you mean train?"),
        (["--verbose"], f"flowimg has no verb --verbose: known are {KNOWN}"),
        ([DIGITS], f"flowimg has no verb {DIGITS}: known are {KNOWN}"),
        ([""], f"flowimg has no verb : known are {KNOWN}"),
    ],
)
def test_a_wrong_verb_is_answered_with_the_right_ones(args, sentence, complaint):
    assert complaint(*args) == (2, sentence)


@pytest.mark.parametrize("verb", ["train", "config"])
def test_without_a_settings_file_those_at_hand_are_named(verb, complaint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert complaint(verb) == (2, f"flowimg {verb} needs a settings file first: a YAML file")
    Path("configs").mkdir()
    for name in "ba":
        Path(f"configs/{name}.yaml").touch()
    wanted = f"flowimg {verb} needs a settings file first: configs/a.yaml, configs/b.yaml"
    assert complaint(verb) == (2, wanted)
    assert complaint(verb, "--seed", "3") == (2, wanted)  # options before it
    status, message = complaint(verb, "configs/c.yaml")
    assert status == 2
    assert message.startswith("there is no settings file configs/c.yaml; did you mean configs/")


@pytest.mark.parametrize("verb", ["sample", "evaluate", "likelihood", "interpolate", "invert", "export"])
def test_without_the_folder_of_a_run_one_is_asked_for(verb, complaint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"invert": ["a.png"], "export": ["folder"]}.get(verb, [])
    for args in ([], ["--weights", "raw"]):
        assert complaint(verb, *args) == (2, f"flowimg {verb} needs the folder of a run first, for example runs/digits")
    nothing = f"nowhere holds no run (there is no {Path('nowhere/config.yaml')}); "
    assert complaint(verb, "nowhere", *given) == (2, nothing + "train one: flowimg train configs/letters.yaml")
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/config.yaml").touch()
    assert complaint(verb, "nowhere", *given) == (2, nothing + f"runs here: {Path('runs/mine')}")
    status, message = complaint(verb, "runs/mine", *given)  # a run that was stopped before its first checkpoint
    assert status not in (0, 70)
    assert "no whole checkpoint" in message


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--optim.lrr", "1"], "unknown setting --optim.lrr: did you mean optim.lr?"),
        (["--lr", "1"], "unknown setting --lr: did you mean optim.lr?"),
        (["--train.batchsize=3"], "unknown setting --train.batchsize: did you mean train.batch_size?"),
        (["--no-data.flip"], "unknown setting --no-data.flip: did you mean data.flip?"),
        (["--Seed", "3"], "unknown setting --Seed: did you mean seed?"),
        (["--"], "unknown setting --: see --help for all"),
        (["--help", "--sed"], "unknown setting --sed: did you mean seed?"),
        (["--optim.lr", "fast"], "command line: optim.lr is 'fast', but should be a valid number"),
        (["--optim.lr", "1,5"], "command line: optim.lr is '1,5', but should be a valid number"),
        (["--optim.lr", "nan"], "command line: optim.lr is 'nan', but should be a valid number"),
        (["--optim.lr", ".inf"], "command line: optim.lr is inf, but should be a finite number"),
        (["--optim.lr", "none"], "command line: optim.lr is 'none', but should be a valid number"),
        (["--optim.lr", "1", "2"], "command line: optim.lr is [1, 2], but should be a valid number"),
        (["--optim.clip", "abc"], "command line: optim.clip is 'abc', but should be a valid number"),
        (["--train.steps", "1.5"], "command line: train.steps is 1.5, but should be a valid integer"),
        (["--train.steps", "10,000"], "command line: train.steps is '10,000', but should be a valid integer"),
        (["--data.flip", "1"], "command line: data.flip is 1, but should be a valid boolean"),
        (["--data.flip", "maybe"], "command line: data.flip is 'maybe', but should be a valid boolean"),
        (["--train.precision", "fp8"], "command line: train.precision is 'fp8': allowed are auto, fp32, bf16, fp16"),
        (["--grid.solver", "huen"], "command line: grid.solver is 'huen': did you mean heun?"),
        (["--optim.kind", "adam"], "command line: optim.kind is 'adam': did you mean adamw?"),
        (["--field.channels", "32", "x"], "command line: field.channels[1] is 'x', but should be a valid integer"),
        (["--optim.lr", "0"], "command line: optim.lr is 0, but should be greater than 0"),
        (["--optim.lr", "-1e-3"], "command line: optim.lr is -0.001, but should be greater than 0"),
        (["--seed", "-1"], "command line: seed is -1, but should be greater than or equal to 0"),
        (
            ["--field.channels", "32", "0"],
            "command line: field.channels[1] is 0, but should be greater than or equal to 1",
        ),
        (["--field.channels"], "command line: field.channels is [], but should have at least 1 item"),
        (["--train.accumulation", "3"], "command line: train: batch_size 128 does not divide by accumulation 3"),
        (["--seed"], "--seed needs a value"),
        (["--seed="], "--seed needs a value"),
        (["--run", ""], "--run needs a value"),
        (["--optim.clip="], "--optim.clip needs a value"),
        (["--data.flip"], "--data.flip needs a value"),
        (["--seed", "--run", "x"], "--seed needs a value"),
        (
            ["--field.kind", "mlp"],
            "--field.kind cannot be given here: choose it in the YAML file, beside its own settings",
        ),
        (
            ["--path.kind=cosine"],
            "--path.kind cannot be given here: choose it in the YAML file, beside its own settings",
        ),
        (["seed=3"], "seed=3 is not a setting: settings are given as --key value"),
        (["-x"], "-x is not a setting: settings are given as --key value"),
        (["extra", "--seed", "3"], "extra is not a setting: settings are given as --key value"),
        (["--seed", "3", "extra"], "command line: seed is [3, 'extra'], but should be a valid integer"),
        (["--seed", "[1"], "--seed, line 1: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        # only what is wrong is named, though the rest may look like YAML of another type
        (["--run", "[x", "--seed", "x"], "command line: seed is 'x', but should be a valid integer"),
        (["--run", "5", "--seed", "x"], "command line: seed is 'x', but should be a valid integer"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.parametrize("verb", ["train", "config"])
def test_a_wrong_override_is_one_sentence(verb, args, sentence, complaint, monkeypatch):
    # should it be let through, nothing is trained
    monkeypatch.setitem(sys.modules, "flowimg.jobs.train.run", SimpleNamespace(train=lambda config, how: None))
    assert complaint(verb, DIGITS, *args) == (2, sentence)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["sample", "r", "--cout", "3"], "unknown setting --cout: did you mean count?"),
        (["sample", "r", "--count", "0"], "command line: count is 0, but should be greater than or equal to 1"),
        (["sample", "r", "--count"], "--count needs a value"),
        (["sample", "r", "--format", "jpg"], "command line: format is 'jpg': did you mean png?"),
        (["sample", "r", "--step", "last"], "command line: step is 'last', but should be a valid integer"),
        (["sample", "r", "s"], "s is not a setting: settings are given as --key value"),
        (
            ["evaluate", "r", "--weights", "mean"],
            "command line: weights: 'mean' is none of ema, raw and a length (0.001 to 0.28)",
        ),
        (
            ["sample", "r", "--weights", "0.3"],
            "command line: weights: 0.3 is none of ema, raw and a length (0.001 to 0.28)",
        ),
        (
            ["train", "configs/digits.yaml", "--train.compile", "maybe"],
            "command line: train.compile: 'maybe' is none of true, false, auto and graphs",
        ),
        (
            ["train", "configs/digits.yaml", "--train.micro-batch", "0"],
            "command line: train.micro_batch: 0 is none of auto, null and a whole number above 0",
        ),
        (["ema", "r", "--length", "0.3"], "command line: length[0] is 0.3, but should be less than or equal to 0.28"),
        (["evaluate", "r", "--max-off", "x"], "command line: max_off is 'x', but should be a valid number"),
        (["evaluate", "r", "--max-off", ".nan"], "command line: max_off is nan, but should be a finite number"),
        (["sample", "r", "--times", "emd"], "command line: times is 'emd': did you mean edm?"),
        (
            ["sample", "r", "--tolerance", "0"],
            "command line: tolerance is 0, but should be greater than or equal to 0.00000001",
        ),
        (
            ["sample", "r", "--guidance-interval", "0.5", "0.2"],
            "command line: guidance_interval [0.5, 0.2] must rise: noise is 0, data 1",
        ),
        (
            ["sample", "r", "--guidance-interval", "0", "1.5"],
            "command line: guidance_interval[1] is 1.5, but should be less than or equal to 1",
        ),
        (["interpolate", "r", "s"], "s is not a setting: settings are given as --key value"),
        (["interpolate", "r", "--seeds", "3"], "command line: seeds is [3], but should have at least 2 items"),
        (["interpolate", "r", "--frames", "1"], "command line: frames is 1, but should be greater than or equal to 2"),
        (["interpolate", "r", "--seeds", "3", "4", "4"], "command line: seeds [3, 4, 4] has 4 twice in a row"),
        (["invert", "r"], "flowimg invert needs pictures: flowimg invert RUN PICTURE ..."),
        (["figures", "r", "--sede", "3"], "unknown setting --sede: did you mean seed?"),
        (["report", "r", "--ouf", "a"], "unknown setting --ouf: did you mean out?"),
        (["play", "r", "--port", "70000"], "command line: port is 70000, but should be less than or equal to 65535"),
        (["experiment"], MOVED),
        (["experiment", "freqency"], MOVED),
        (["experiment", "frequency", "--cells", "1"], MOVED),
        (["experiment", "--help"], MOVED),
        (["export", "r"], "flowimg export needs a folder to write to: flowimg export RUN FOLDER"),
        (["export", "r", "--guidance", "2"], f"unknown setting --guidance: known are {', '.join(Export.model_fields)}"),
        (["evaluate", "r", "--label", "3"], "unknown setting --label: see --help for all"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_setting_of_a_verb_on_a_run_is_one_sentence(args, sentence, complaint):
    assert complaint(*args) == (2, sentence)


def test_mistakes_in_the_file_are_told_before_those_of_the_command_line(complaint, tmp_path):
    (tmp_path / "a.yaml").write_text("sed: 1")
    status, message = complaint("config", str(tmp_path / "a.yaml"), "--seed", "x")
    assert (status, message) == (2, f"{tmp_path / 'a.yaml'}: unknown key sed: did you mean seed?")


def test_a_folder_that_cannot_be_written_is_one_sentence(complaint, tmp_path):
    (tmp_path / "file").touch()
    # root may write anywhere, but not below a file
    status, message = complaint("train", BOARD, "--run", str(tmp_path / "file" / "run"))
    assert status == 4
    assert str(tmp_path / "file") in message


def test_a_fault_of_flowimg_shows_where_it_is(capsys, monkeypatch):
    def broken(args):
        raise RuntimeError("a bug")

    monkeypatch.setitem(VERBS, "config", VERBS["config"]._replace(run=broken))
    with pytest.raises(SystemExit) as stop:
        main(["config"])
    err = capsys.readouterr().err
    assert stop.value.code == 70
    assert "Traceback" in err
    assert err.splitlines()[-2:] == [
        "RuntimeError: a bug",
        "flowimg: this is a bug in flowimg, not your mistake; please report the lines above",
    ]


def test_ctrl_c_says_how_to_go_on(complaint, monkeypatch):
    def stopped(args):
        raise KeyboardInterrupt

    monkeypatch.setitem(VERBS, "train", VERBS["train"]._replace(run=stopped))
    assert complaint("train") == (130, "stopped; the same command continues from the last checkpoint")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_hangs_up_is_no_fault(unbuffered):
    # as in `flowimg config ... | head -0`
    verb = subprocess.Popen(
        [sys.executable, "-m", "flowimg", "config", BOARD],
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    verb.stdout.close()
    assert verb.communicate(timeout=600)[1] == b""
    assert verb.returncode == 141


# --- what is right ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "changes"),
    [
        (["--train.batch-size", "64"], {"train.batch_size": 64}),
        (["--train.batch_size", "64"], {"train.batch_size": 64}),
        (["--train.batch-size=64"], {"train.batch_size": 64}),
        (["--train.batch_size=64"], {"train.batch_size": 64}),
        (["--seed", "9223372036854775807"], {"seed": 2**63 - 1}),
        (["--seed", "1", "--seed", "2"], {"seed": 2}),
        (["--optim.lr", "2e-4"], {"optim.lr": 2e-4}),
        (["--optim.lr", "1"], {"optim.lr": 1.0}),
        (["--optim.clip", "none"], {"optim.clip": None}),
        (["--optim.clip", "None"], {"optim.clip": None}),
        (["--optim.clip=null"], {"optim.clip": None}),
        (["--optim.clip", "0.5"], {"optim.clip": 0.5}),
        (["--train.stop-at", "none"], {"train.stop_at": None}),
        (["--train.stop-at", "7"], {"train.stop_at": 7}),
        (["--data.flip", "True"], {"data.flip": True}),
        (["--data.flip", "true"], {"data.flip": True}),
        (["--data.flip=yes"], {"data.flip": True}),
        (["--data.labels", "False"], {"data.labels": False}),
        (["--data.labels", "false"], {"data.labels": False}),
        (["--field.channels", "32", "64"], {"field.channels": [32, 64]}),
        (["--field.channels=32", "64", "96"], {"field.channels": [32, 64, 96]}),
        (["--field.channels", "32"], {"field.channels": [32]}),
        (["--field.attention"], {"field.attention": []}),
        (["--optim.betas", "0.5", "0.75", "--seed", "1"], {"optim.betas": [0.5, 0.75], "seed": 1}),
        (["--run", "elsewhere"], {"run": "elsewhere"}),
        (["--run", "5"], {"run": "5"}),
        (["--run", "a=b: c"], {"run": "a=b: c"}),
        (["--run=a=b"], {"run": "a=b"}),
        (["--run", "none"], {"run": "runs/digits"}),
        (["--grid.solver", "rk4"], {"grid.solver": "rk4"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_override_changes_its_setting_and_no_other(args, changes, resolved):
    before, after = resolved(DIGITS), resolved(DIGITS, *args)
    assert after == {**before, **changes}
    for key, value in changes.items():
        assert type(after[key]) is type(value)  # 1 == True == 1.0


def test_what_config_prints_is_a_settings_file(capsys, tmp_path):
    main(["config", DIGITS, "--optim.lr", "1e-4"])
    (tmp_path / "mine.yaml").write_text(capsys.readouterr().out)
    before, after = flatten(load(DIGITS)), flatten(load(str(tmp_path / "mine.yaml")))
    assert after == {**before, "optim.lr": 1e-4}


def test_options_of_sample_reach_the_job(monkeypatch):
    import flowimg.jobs.sample

    seen = []
    monkeypatch.setattr(flowimg.jobs.sample, "sample", seen.append)
    main(["sample", "runs/x", "--count", "3", "--label", "7", "--num-steps=4", "--step", "none"])
    main(["sample", "runs/x", "--label", "seven", "--out", "none"])
    assert seen == [Sample(run="runs/x", count=3, label="7", num_steps=4), Sample(run="runs/x", label="seven")]


def test_options_of_evaluate_reach_the_job(monkeypatch):
    import flowimg.jobs.evaluate.run

    seen = []
    monkeypatch.setattr(flowimg.jobs.evaluate.run, "evaluate", seen.append)
    main(["evaluate", "runs/x", "--max-off", "0.07", "--max_sw2=0.06"])
    assert seen == [Evaluate(run="runs/x", max_off=0.07, max_sw2=0.06)]


@pytest.mark.parametrize(
    ("args", "job", "settings"),
    [
        (["interpolate", "r", "--seeds", "3", "4", "9"], "jobs.interpolate", Interpolate(run="r", seeds=(3, 4, 9))),
        (
            ["invert", "r", "a.png", "7", "--label", "1"],
            "jobs.invert",
            Invert(run="r", pictures=("a.png", "7"), label="1"),
        ),
        (["figures", "r", "--seed", "4"], "jobs.figures.run", Figures(run="r", seed=4)),
        (["report", "r", "s", "t", "--out", "a.html"], "jobs.report", Report(run="r", others=("s", "t"), out="a.html")),
        (["report", "r"], "jobs.report", Report(run="r")),
        (["play", "r", "--port", "0", "--open", "true"], "app.page", Play(run="r", port=0, open=True)),
        (["invert", "r", "--pictures", "a.png"], "jobs.invert", Invert(run="r", pictures=("a.png",))),
        (["export", "r", "d", "--num-steps", "9"], "jobs.export", Export(run="r", out="d", num_steps=9)),
        (["export", "r", "--out", "d", "--private", "false"], "jobs.export", Export(run="r", out="d", private=False)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_words_after_the_run_and_options_reach_the_job(args, job, settings, monkeypatch):
    seen = []
    monkeypatch.setattr(f"flowimg.{job}.{args[0]}", seen.append)
    main(args)
    assert seen == [settings]


def test_every_job_takes_the_settings_of_its_verb(monkeypatch):
    """Jobs are named by text, which type checkers do not follow."""
    seen = {}
    monkeypatch.setattr("flowimg.cli.call", lambda job, *settings: seen.update({job: settings}))
    on_runs = "sample interpolate invert export ema evaluate likelihood figures report play"
    for words in [
        *([verb, BOARD] for verb in ("train", "estimate")),
        *([verb, "r"] for verb in on_runs.split()),
        ["train", BOARD, "--dry-run"],
        ["estimate", BOARD, "--processes", "8"],
        ["data", "check", "s"],
        ["data", "preview", "s"],
        ["data", "prepare", DIGITS],
        ["doctor"],
    ]:
        main(words)
    assert len(seen) == 18
    for job, settings in seen.items():
        hints = get_type_hints(resolve_name(f"flowimg.{job}"))
        for value, wanted in zip(settings, hints.values(), strict=False):
            assert isinstance(value, wanted), job


# --- what a script reads ---------------------------------------------------------------------------------------------


@pytest.fixture
def speaking(monkeypatch):
    """`evaluate` that says something, draws a bar and has a result."""
    from tqdm import tqdm

    def speaking(args):
        print("some words", args)
        for _ in tqdm(range(2), disable=False if args == ["bar"] else None):
            pass
        if args == ["fail"]:
            raise GateError("too bad")
        return {"off": 0.5}

    from flowimg.errors import GateError

    monkeypatch.setitem(VERBS, "evaluate", VERBS["evaluate"]._replace(run=speaking))


@pytest.mark.parametrize(
    ("flags", "out", "words"),
    [
        ([], "some words []\n", ""),
        (["--json"], '{"off": 0.5}\n', "some words []\n"),
        (["--quiet"], "", ""),
        (["--quiet", "--json"], '{"off": 0.5}\n', ""),
    ],
    ids=["plain", "json", "quiet", "quiet json"],
)
def test_words_and_result_go_where_they_are_asked(flags, out, words, speaking, capsys):
    main(["evaluate", *flags])
    assert tuple(capsys.readouterr()) == (out, words)


def test_quiet_silences_bars_but_no_errors(speaking, capsys):
    main(["evaluate", "bar", "--quiet"])
    assert tuple(capsys.readouterr()) == ("", "")
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "fail", "--quiet", "--json"])
    assert stop.value.code == 1
    assert tuple(capsys.readouterr()) == ("", "flowimg: too bad\n")


def test_config_as_json_is_its_yaml(capsys):
    main(["config", DIGITS, "--json", "--quiet"])
    told = json.loads(capsys.readouterr().out)
    main(["config", DIGITS])
    assert yaml.safe_load(capsys.readouterr().out) == told


@pytest.mark.parametrize(
    "args", [["--help"], ["train", DIGITS, "--help"], ["sample", "--help"], ["trian"], ["config", BOARD]]
)
def test_nothing_is_coloured_where_no_terminal_is(args):
    done = subprocess.run([sys.executable, "-m", "flowimg", *args], capture_output=True, timeout=600)
    assert b"\x1b" not in done.stdout + done.stderr


# --- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [[], ["-h"], ["--help"]])
def test_flowimg_alone_names_every_verb_and_a_first_command_that_exists(args, capsys):
    main(args)
    out, err = capsys.readouterr()
    assert err == ""
    for verb in VERBS:
        assert f"flowimg {verb} " in out
    first = out.splitlines()[-1].removeprefix("first run: flowimg ").split()
    assert first[0] in VERBS
    assert (ROOT / first[1]).exists()
    assert all(len(line) <= 120 for line in out.splitlines())


def test_the_version_is_said(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"flowimg {__version__}\n"


@pytest.mark.parametrize(
    ("args", "model"),
    [
        (["train"], Config()),
        (["config"], Config()),
        (["train", DIGITS], load(DIGITS)),
        (["sample"], Sample(run="r")),
        (["sample", "r"], Sample(run="r")),
        (["evaluate"], Evaluate(run="r")),
        (["likelihood"], Likelihood(run="r")),
        (["interpolate"], Interpolate(run="r")),
        (["invert", "r", "a.png"], Invert(run="r")),
        (["export"], Export(run="r")),
        (["ema"], Ema(run="r")),
        (["figures"], Figures(run="r")),
        (["report", "r", "s"], Report(run="r")),
        (["play"], Play(run="r")),
    ],
    ids=[
        "train",
        "config",
        "train CONFIG",
        "sample",
        "sample RUN",
        "evaluate",
        "likelihood",
        "interpolate",
        "invert",
        "export",
        "ema",
        "figures",
        "report",
        "play",
    ],
)
@pytest.mark.parametrize("help", ["-h", "--help"])
def test_help_of_a_verb_names_every_setting(args, model, help, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*args, help])
    out, err = capsys.readouterr()
    assert stop.value.code == 0
    assert err == ""
    words = out.replace("│", " ").split()
    for key in flatten(model):
        assert f"--{key.replace('_', '-')}" in words
    assert f"usage: flowimg {args[0]}" in out


def test_help_shows_the_values_of_the_file(capsys):
    with pytest.raises(SystemExit):
        main(["train", DIGITS, "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"Peak learning rate. (default: {load(DIGITS).optim.lr})" in text
    assert f"Optimiser steps of the whole run. (default: {load(DIGITS).train.steps})" in text


def test_a_list_may_be_one_word_as_config_prints_it(capsys):
    for words in (["[96, 192]"], ["96", "192"]):
        main(["config", "configs/digits.yaml", "--field.channels", *words])
        assert "channels: [96, 192]" in capsys.readouterr().out
    main(["config", "configs/digits.yaml", "--field.attention="])
    assert "attention: []" in capsys.readouterr().out


def test_the_optimiser_is_chosen_on_the_command_line(capsys):
    main(["config", DIGITS, "--optim.kind", "muon", "--optim.momentum", "0.9"])
    assert "kind: muon" in capsys.readouterr().out
