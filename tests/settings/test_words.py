"""Words that YAML reads as something else: in a file and on the command line, the type of the setting decides."""

import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from flowimg.cli import main
from flowimg.errors import SettingsError
from flowimg.settings.command import override
from flowimg.settings.reading import dump, flatten, load, validate
from flowimg.settings.run import Config

IMAGES = "data: {kind: images, labels: true}\nfield: {kind: unet}\n"
ODD = (
    "none", "None", "null", "Null", "no", "No", "yes", "on", "off", "true", "False", "y", "5", "010", "012", "0o17",
    "0x1F", "1_0", "1:30", "190:20:30", "1e3", "2e-4", ".inf", "NaN", "=", "<<", "2024-01-01",
    "2001-12-14t21:59:43.10-05:00",
)  # fmt: skip
"""Words that YAML 1.1 reads as something else than text, and words for nothing."""


@pytest.fixture
def both(tmp_path):
    """What a setting becomes in a file and on the command line: its values, or the sentences that refuse it."""
    file = tmp_path / "a.yaml"

    def told(key, read):
        try:
            return flatten(read())[key]
        except SettingsError as error:
            return re.sub("^(.*a.yaml|command line|--[^,:]*)(, line 1)?: ", "", str(error))

    def both(key, word, others=""):
        group, _, last = key.rpartition(".")
        file.write_text(others)
        before = load(str(file))
        others = others.replace(f"{group}: {{", f"{group}: {{{last}: {word}, ") if group and group in others else others
        alone = f"{group}: {{{last}: {word}}}\n" if group else f"{last}: {word}\n"
        file.write_text(others if group and group in others else alone + others)
        line = word[1:-1].split(", ") if word.startswith("[") else [word]
        return told(key, lambda: load(str(file))), told(key, lambda: override(before, [f"--{key}", *line]))

    return both


@pytest.mark.parametrize(
    ("key", "values"),
    [
        # 000010.png is the picture of seed 10, and --seed 000010 was 8
        ("seed", {"000010": 10, "010": 10, "08": 8, "+5": 5, "1_000": 1000, "0x1F": 31, "0b101": 5, "0o17": 15}),
        ("train.stop_at", {"00000100": 100, "null": None, "none": None, "~": None}),
        ("train.micro_batch", {"0064": 64, "auto": "auto", "none": None}),
        ("optim.lr", {"010": 10.0, "00.5": 0.5, "1e-3": 1e-3, ".5": 0.5, "1.": 1.0, "1_000.5": 1000.5}),
        ("optim.clip", {"none": None, "~": None, "0_1": 1.0}),
        ("train.compile", {"off": False, "auto": "auto", "True": True}),
        ("figures", {"no": False, "ON": True, "yes": True}),
        ("track", {"none": None, "wandb": "wandb"}),
    ],
)
def test_a_number_is_decimal_and_a_switch_is_a_word(key, values, both):
    for word, value in values.items():
        read = both(key, word)
        assert read == (value, value) and type(read[0]) is type(read[1]) is type(value), word


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("seed", ("1:30", "190:20:30", "1__0", "10_", "2024-01-01", "yes", "0o8", "~", "!!int 010", "1" * 5000)),
        ("optim.lr", ("1:30", "1:30.5", "nan", ".NaN", "none", "1_.5", "1" * 400)),
        ("figures", ("1", "none", "0")),
        ("grid.solver", ("1:30", "null")),
        ("optim.betas", ("[1:30, 0.9]", "[0.9, no]")),
    ],
)
def test_a_word_that_is_no_number_is_refused_and_not_turned_into_one(key, words, both):
    for word in words:  # 1:30 was 90
        for said in both(key, word):
            assert isinstance(said, str) and len(said.splitlines()) == 1, word
            assert said.startswith((key, "not valid YAML")), said


@pytest.mark.parametrize("word", ODD)
def test_a_text_is_the_word_that_was_typed(word, both):
    nothing = None if word.lower() in ("none", "null") else word  # where there may be no text
    assert both("run", word) == ((nothing or "runs/a"), nothing)
    assert both("data.label_column", word, IMAGES) == (nothing, nothing)
    for key in ("data.source", "data.split"):
        said = f"{key} is None, but should be a valid string" if word.lower() == "null" else word  # YAML's for nothing
        assert both(key, word, IMAGES) == (said, said)
    assert both("data.classes", f"[{word}]", IMAGES) == ((word,), (word,))  # a class may be called anything


def test_a_list_of_classes_may_mix_them(both):
    assert both("data.classes", f"[{', '.join(ODD)}]", IMAGES) == (ODD, ODD)


@pytest.mark.parametrize("text", ["split:", "root:", "classes: [a, ~]", "classes:\n  - a\n  -"])
def test_an_empty_value_is_no_text(text, tmp_path):
    (tmp_path / "a.yaml").write_text(f"field: {{kind: unet}}\ndata:\n  kind: images\n  {text}\n")
    with pytest.raises(SettingsError, match=r"data.\S+ is None, but should be a valid string"):
        load(str(tmp_path / "a.yaml"))


def test_a_word_in_quotes_is_text(tmp_path):
    (tmp_path / "a.yaml").write_text(IMAGES.replace("labels: true", "label_column: 'none', subset: \"null\""))
    assert load(str(tmp_path / "a.yaml")).data.label_column == "none"
    assert load(str(tmp_path / "a.yaml")).data.subset == "null"
    for text in ("seed: '010'", "figures: 'no'", "optim: {clip: 'none'}"):
        (tmp_path / "a.yaml").write_text(text)
        with pytest.raises(SettingsError, match="should be a valid"):
            load(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize("key", ["on", "no", "010", "1:30", "null", "<<"])
def test_keys_are_words_too(key, tmp_path):
    (tmp_path / "a.yaml").write_text(f"{key}: 1")
    with pytest.raises(SettingsError, match=f"unknown key {key}:"):
        load(str(tmp_path / "a.yaml"))


TEXTS = st.one_of(st.sampled_from([*ODD, "~", " none", "none ", "'none'", "a: b", "- a", "#a", "-"]), st.text())


@settings(max_examples=30)
@given(st.lists(TEXTS, min_size=7, max_size=7))
def test_any_text_that_is_written_reads_back_equal(tmp_path_factory, texts):
    # what no file can hold is not asked for
    texts = ["".join(sign for sign in text if sign.isprintable()) or "x" for text in texts]
    names = ("source", "root", "subset", "split", "image_column", "label_column", "cache")
    data = {"kind": "images", **dict(zip(names, texts, strict=True)), "classes": texts}
    field = {"kind": "unet", "pretrained": texts[1]}
    config = validate(Config, {"run": texts[0], "data": data, "field": field}, "here")
    file = tmp_path_factory.getbasetemp() / "back.yaml"
    file.write_text(dump(config))
    assert load(str(file)) == config
    assert yaml.safe_load(dump(config)) == config.model_dump(mode="json")  # for other readers too


def test_the_settings_of_an_old_run_read_as_they_were_written(tmp_path):
    """Earlier versions quoted all text that YAML 1.1 would read as something else, and nothing more."""
    data = {"kind": "images", "classes": list(ODD), "split": "none", "root": "1e3"}
    config = validate(Config, {"run": "010", "data": data, "field": {"kind": "unet"}}, "here")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    assert load(str(tmp_path / "config.yaml")) == config


@pytest.mark.parametrize(
    ("args", "name", "value"),
    [
        (["sample", "r", "--seed", "000010"], "seed", 10),
        (["sample", "r", "--step", "00000010"], "step", 10),
        (["interpolate", "r", "--seeds", "000010", "000020"], "seeds", (10, 20)),
        (["report", "r", "2024-01-01", "none"], "others", ("2024-01-01", "none")),
        (["invert", "r", "010", "1:30"], "pictures", ("010", "1:30")),
        *((["sample", "r", "--label", word], "label", word) for word in ("none", "null", "~", "012", "no", "1_0", "7")),
        (["sample", "r", "--out", "010"], "out", "010"),
        (["evaluate", "r", "--features", "1:30"], "features", "1:30"),
        (["export", "r", "2024-01-01"], "out", "2024-01-01"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_verbs_read_words_in_the_same_way(args, name, value, monkeypatch):
    seen = []
    monkeypatch.setattr("flowimg.cli.call", lambda job, settings: seen.append(getattr(settings, name)))
    main(args)
    assert seen == [value]


@pytest.mark.parametrize(("word", "value"), [("00000010", 10), ("0", 0), ("true", True), ("no", False)])
def test_the_step_of_resume_is_a_number(word, value, monkeypatch):
    seen = []
    monkeypatch.setattr("flowimg.cli.call", lambda job, config, how: seen.append(how.resume))
    main(["train", "configs/checkerboard.yaml", "--resume", word])
    assert seen == [value] and type(seen[0]) is type(value)


def test_a_label_of_several_words_is_refused_in_one_sentence(refused):
    status, said = refused("sample", "r", "--label", "golden", "retriever")
    assert status == 2 and said.startswith("command line: label: ['golden', 'retriever'] is none of")
