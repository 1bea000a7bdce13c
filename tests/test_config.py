"""Settings: what is read is what is written, and everything else is refused with a sentence that helps."""

import string
from pathlib import Path
from typing import get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from pydantic import ValidationError

from flowimg.build.images import depth_of
from flowimg.errors import SettingsError
from flowimg.settings.base import Settings
from flowimg.settings.evaluate import Evaluate
from flowimg.settings.reading import dump, flatten, load, validate
from flowimg.settings.run import Config
from flowimg.settings.verbs import Sample

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
IMAGES = {"data": {"kind": "images"}, "field": {"kind": "unet"}, "coupling": {"kind": "ot"}}
"""The groups of a run on images, beside the defaults, which are those of a run on points."""


@pytest.fixture
def read(tmp_path):
    def read(text):
        (tmp_path / "a.yaml").write_text(text)
        return load(str(tmp_path / "a.yaml"))

    return read


@pytest.fixture
def refusal(read):
    """The message with which a settings file of this text is refused."""

    def refusal(text):
        with pytest.raises(SettingsError) as caught:
            read(text)
        return str(caught.value)

    return refusal


# --- there and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_a_settings_file_written_out_reads_back_equal(file, tmp_path):
    config = load(str(file))
    (tmp_path / "b.yaml").write_text(dump(config))
    assert load(str(tmp_path / "b.yaml")) == config
    assert config.run == f"runs/{file.stem}"


def test_there_are_settings_files_to_read():
    assert {"checkerboard", "digits"} <= {file.stem for file in CONFIGS}


@pytest.mark.parametrize("values", [{}, IMAGES, {"optim": {"clip": None, "lr": 1e-30}, "times": {"kind": "skewed"}}])
def test_settings_written_out_read_back_equal_and_hold_every_key(values, read):
    config = validate(Config, {"run": "r", **values}, "here")
    text = dump(config)
    assert read(text) == config
    plain = yaml.safe_load(text)
    for key in flatten(config):
        value = plain
        for part in key.split("."):
            value = value[part]  # every key is there, the defaults too


def test_an_empty_file_means_the_defaults(read):
    for text in ("", "\n# nothing but a comment\n", "{}"):
        assert read(text) == Config(run="runs/a")


def test_the_run_is_named_after_its_file_unless_it_is_named(read):
    assert read("seed: 1").run == "runs/a"
    assert read("run: elsewhere").run == "elsewhere"
    assert read("run: null").run == "runs/a"
    assert read("run: 2026-01-31").run == "2026-01-31"  # YAML would have it a date
    assert read("run: 5").run == "5"


@pytest.mark.parametrize(
    ("written", "value"), [("2e-4", 2e-4), ("1e3", 1e3), ("-0.0002E+7", None), ("3", 3.0), ("1_000.5", 1000.5)]
)
def test_numbers_are_read_as_people_write_them(written, value, read, refusal):
    if value is None:
        assert "-2000.0" in refusal(f"optim: {{lr: {written}}}")  # read as a number, refused for its sign
    else:
        assert read(f"optim: {{lr: {written}}}").optim.lr == value


def test_lists_are_read_as_tuples(read):
    groups = "data: {kind: images}\nfield: {kind: unet, channels: [32, 64, 64], attention: []}\n"
    config = read(groups + "optim:\n  betas:\n  - 0.5\n  - 0.75\n")
    assert config.field.channels == (32, 64, 64)
    assert config.field.attention == ()
    assert config.optim.betas == (0.5, 0.75)


def test_names_of_classes_may_be_written_as_numbers(read):
    """`classes: [1, 10]` was refused, as YAML reads numbers."""
    kept = "data: {kind: images, classes: %s}\nfield: {kind: unet}\n"
    assert read(kept % "[1, '10', -1, '01', cat]").data.classes == ("1", "10", "-1", "01", "cat")


# --- wrong values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("seed: '3'", "seed", "'3'"),
        ("seed: 3.0", "seed", "3.0"),
        ("train: {steps: 1e3}", "train.steps", "1000.0"),
        ("seed: true", "seed", "True"),
        ("optim: {lr: '1e-3'}", "optim.lr", "'1e-3'"),
        ("optim: {lr: true}", "optim.lr", "True"),
        ("optim: {lr: null}", "optim.lr", "None"),
        ("times: {kind: uniform, stratified: 'yes'}", "times.stratified", "'yes'"),
        ("times: {kind: uniform, stratified: 1}", "times.stratified", "1"),
        ("run: ''", "run", "''"),
        ("data: {kind: images, classes: 1}\nfield: {kind: unet}", "data.classes", "1"),
        ("run: [5]", "run", "['5']"),
        ("data: {kind: images, source: ''}\nfield: {kind: unet}", "data.source", "''"),
        ("optim: {betas: 0.9}", "optim.betas", "0.9"),
        ("optim: {betas: [0.9]}", "optim.betas[1]", "missing"),
        ("optim: {betas: [0.9, 0.9, 0.9]}", "optim.betas", "0.9, 0.9, 0.9"),
        ("optim: {betas: [0.9, '0.9']}", "optim.betas[1]", "'0.9'"),
        ("optim: 3", "optim", "3"),
        ("optim:\nseed: 3", "optim", "None"),
        ("data: points", "data", "'points'"),
        # out of range
        ("seed: -1", "seed", "-1"),
        ("seed: 9223372036854775808", "seed", "9223372036854775808"),
        ("optim: {lr: 0}", "optim.lr", "0"),
        ("optim: {lr: .inf}", "optim.lr", "inf"),
        ("optim: {lr: 1e400}", "optim.lr", "inf"),
        ("optim: {weight_decay: .nan}", "optim.weight_decay", "nan"),
        ("optim: {betas: [0.9, 1.0]}", "optim.betas[1]", "1.0"),
        ("optim: {ema: 1.0}", "optim.ema", "1.0"),
        ("optim: {clip: 0.0}", "optim.clip", "0.0"),
        ("train: {steps: 0}", "train.steps", "0"),
        ("train: {keep: 1}", "train.keep", "1"),
        ("train: {label_drop: 1.5}", "train.label_drop", "1.5"),
        ("coupling: {kind: ot, block: 1}", "coupling.block", "1"),
        ("coupling: {kind: ot, block: 513}", "coupling.block", "513"),
        ("times: {kind: logit_normal, std: 0}", "times.std", "0"),
        ("data: {kind: points, cells: 65}", "data.cells", "65"),
        ("data: {kind: images}\nfield: {kind: unet, channels: []}", "field.channels", "[]"),
        ("data: {kind: images}\nfield: {kind: unet, channels: [32, 0]}", "field.channels[1]", "0"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key_and_itself(text, key, value, refusal):
    message = refusal(text)
    assert f": {key} is " in message
    assert value in message.split(f": {key} is ")[1]
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("grid: {solver: eulr}", "grid.solver is 'eulr': did you mean euler?"),
        ("data: {kind: points, source: chekerboard}", "did you mean checkerboard?"),
        ("train: {precision: int8}", "train.precision is 'int8': allowed are auto, fp32, bf16, fp16"),
        ("train: {precision: 32}", "train.precision is 32: did you mean fp32?"),
    ],
)
def test_a_wrong_choice_is_refused_with_the_right_ones(text, hint, refusal):
    assert refusal(text).endswith(hint)


def test_every_wrong_value_has_its_own_line(refusal):
    lines = refusal("seed: x\ngrid: {count: 1.5, num_steps: 0}\noptim: {lrr: 1}").splitlines()
    assert [line.split(": ", 1)[1].split()[0] for line in lines] == ["seed", "unknown", "grid.num_steps", "grid.count"]
    # an item that is wrong does not make its list too short as well
    assert len(refusal("data: {kind: images}\nfield: {kind: unet, channels: [32.5]}").splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("train: {batch_size: 10, accumulation: 3}", "train: batch_size 10 does not divide by accumulation 3"),
        (
            "data: {kind: images}",
            "field.kind mlp learns points, but data.kind is images: use field.kind dit or jit or unet",
        ),
        ("field: {kind: unet}", "field.kind unet learns images, but data.kind is points: use field.kind mlp"),
    ],
)
def test_values_that_do_not_fit_each_other_are_refused(text, sentence, refusal):
    assert refusal(text).endswith(f"a.yaml: {sentence}")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("range: [0, 1]", "range is for depth 16 and float: images of 8 bits go from 0 to 255"),
        ("depth: float", "depth float needs range, the two numbers that mean black and white, such as 0 1"),
        ("depth: float, range: [1, 0]", "range 1 0 must be two numbers that rise"),
        ("depth: float, range: [3, 3]", "range 3 3 must be two numbers that rise"),
        ("depth: 16, range: [4095, 0]", "range 4095 0 must be two numbers that rise"),
        ("depth: 16, range: [0, 4095.5]", "range with depth 16 is two whole numbers from 0 to 65535"),
        ("depth: 16, range: [0, 65536]", "range with depth 16 is two whole numbers from 0 to 65535"),
        ("depth: 16, range: [-1, 4095]", "range with depth 16 is two whole numbers from 0 to 65535"),
        (
            "depth: 16, range: [0, 4095], channels: rgba",
            "channels rgba with depth 16 goes from 0 to 65535: leave out range",
        ),
    ],
)
def test_depths_and_ranges_that_do_not_fit_each_other_are_refused(text, sentence, refusal):
    assert refusal(f"data: {{kind: images, {text}}}\nfield: {{kind: unet}}").endswith(f": {sentence}")


@pytest.mark.parametrize("text", ["depth: 12", "depth: '16'", "depth: double", "range: [0]", "range: 3",
                                  "range: [0, .nan]", "range: [-.inf, 1]"])  # fmt: skip
def test_depths_and_ranges_that_are_none_are_refused(text, refusal):
    said = refusal(f"data: {{kind: images, {text}}}\nfield: {{kind: unet}}")
    assert f": data.{text.split(':')[0]}" in said and len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "depth"),
    [
        ("depth: 16", ("uint16", 0, 65535)),
        ("depth: 16, range: [0, 4095]", ("uint16", 0, 4095)),
        ("depth: 16, range: [0, 65535], channels: rgba", ("uint16", 0, 65535)),
        ("depth: float, range: [-1000, 3000.5]", ("float32", -1000, 3000.5)),
        ("depth: 8", ("uint8", 0, 255)),
    ],
)
def test_depths_and_ranges_that_fit(text, depth, tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(f"data: {{kind: images, {text}}}\nfield: {{kind: unet}}")
    assert depth_of(load(str(file)).data) == depth


# --- wrong keys and kinds --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key", "hint"),
    [
        ("fild: {}", "fild", "did you mean field?"),
        ("sed: 1", "sed", "did you mean seed?"),
        ("lr: 3", "lr", "did you mean optim.lr?"),
        ("batch_size: 3", "batch_size", "did you mean train.batch_size?"),
        ("optim: {lrr: 3}", "lrr in optim", "did you mean lr?"),
        ("train: {batchsize: 3}", "batchsize in train", "did you mean batch_size?"),
        ("field: {kind: mlp, widht: 3}", "widht in field", "did you mean width?"),
        ("data: {kind: images, flipp: true}\nfield: {kind: unet}", "flipp in data", "did you mean flip?"),
        ("times: {kind: logit_normal, men: 0}", "men in times", "did you mean mean?"),
        # keys of another member of the union
        ("field: {kind: mlp, channels: [1]}", "channels in field", "known are kind, width, depth"),
        ("coupling: {kind: independent, block: 64}", "block in coupling", "known are kind"),
        ("1: 2", "1", ""),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_right_one(text, key, hint, refusal):
    assert f"unknown key {key}: {hint}" in refusal(text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("data: {kind: image}", "data.kind is image: did you mean images?"),
        ("path: {kind: cosin}", "path.kind is cosin: did you mean cosine?"),
        ("data: {kind: zzz}", "data.kind is zzz: allowed are points, images"),
        ("data: {kind: 3}", "data.kind is 3: allowed are points, images"),
        ("data: {cells: 8}", "data.kind is missing: give one of points, images"),
        ("times: {}", "times.kind is missing: give one of uniform, logit_normal, skewed"),
    ],
)
def test_a_wrong_or_missing_kind_is_refused_with_the_right_ones(text, sentence, refusal):
    assert refusal(text).endswith(f"a.yaml: {sentence}")


def keys_of(settings, prefix=()):
    """The place of every key, groups too."""
    for name in type(settings).model_fields:
        yield (*prefix, name)
        value = getattr(settings, name)
        if isinstance(value, Settings):
            yield from keys_of(value, (*prefix, name))


@st.composite
def typos(draw):
    """Settings with one character of one key lost, added, replaced or swapped with its neighbour."""
    config = validate(Config, draw(st.sampled_from([{}, IMAGES])), "here")
    values = config.model_dump(mode="json")
    *groups, key = draw(st.sampled_from(list(keys_of(config))))
    place = values
    for group in groups:
        place = place[group]
    at = draw(st.integers(0, len(key) - 1))
    other = draw(st.sampled_from(string.ascii_letters + "_-. "))
    forms = [key[:at] + key[at + 1 :], key[:at] + other + key[at:], key[:at] + other + key[at + 1 :], key + other]
    forms.append(key[:at] + key[at : at + 2][::-1] + key[at + 2 :])
    typo = draw(st.sampled_from(forms))
    place_before = dict(place)
    place.clear()
    place.update({typo if name == key else name: value for name, value in place_before.items()})
    return values, key, typo, set(place_before)


@effort(max_examples=300, deadline=None)
@given(typos())
def test_a_typo_in_any_key_is_refused(case):
    values, key, typo, right = case
    if typo in right:  # no character changed, or the name of another key
        return
    with pytest.raises(SettingsError) as caught:
        validate(Config, values, "here")
    chosen = key == "kind" and "schedule" not in right  # by which a group is another one; the optimiser's is a setting
    assert "kind is missing" in str(caught.value) if chosen else f"unknown key {typo}" in str(caught.value)


# --- wrong files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [("seed: 1\nseed: 2", 2, "seed"), ("run: a\noptim:\n  lr: 1\n  ema: 0\n  lr: 1", 5, "lr"), ("? 1\n? 1", 2, "1")],
)
def test_a_key_given_twice_is_refused_where_it_comes_again(text, line, key, refusal):
    assert refusal(text).endswith(f"a.yaml, line {line}: not valid YAML: {key} is given twice")


@pytest.mark.parametrize(("text", "kind"), [("- 1\n- 2", "list"), ("just words", "str"), ("3", "int")])
def test_what_is_not_a_mapping_is_refused(text, kind, refusal):
    assert refusal(text).endswith(f"a.yaml must hold settings as `key: value` lines, not a {kind}")


@pytest.mark.parametrize("text", ["seed: [1", "seed: 1\n\trun: a", "a: b: c", "seed: \0", "? [a, b]\n: 1", "a: *b"])
def test_what_is_not_yaml_is_refused_in_one_line(text, refusal):
    message = refusal(text)
    assert "a.yaml" in message
    assert "not valid YAML" in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.mkdir [{0}]", "!!python/object:pathlib.Path {{}}", "!new {{}}"]
)
def test_yaml_makes_no_objects(tag, refusal, tmp_path):
    made = tmp_path / "made"
    assert "not valid YAML: could not determine a constructor" in refusal("run: " + tag.format(made))
    assert not made.exists()


def test_a_missing_file_is_refused_with_the_nearest_one(tmp_path):
    (tmp_path / "digits.yaml").touch()
    with pytest.raises(SettingsError, match=r"no settings file .*digit\.yml; did you mean .*digits\.yaml\?$"):
        load(str(tmp_path / "digit.yml"))
    with pytest.raises(SettingsError, match=r"no settings file .*zzz$"):
        load(str(tmp_path / "zzz"))
    with pytest.raises(SettingsError, match=r"no settings file .*b\.yaml$"):
        load(str(tmp_path / "no such folder" / "b.yaml"))


def test_a_folder_or_a_binary_file_is_no_settings_file(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\xd8")
    for path in (tmp_path, tmp_path / "binary.yaml"):
        with pytest.raises(SettingsError, match="cannot be read as a settings file"):
            load(str(path))


# --- the models ------------------------------------------------------------------------------------------------------


def models(base=Settings):
    for model in base.__subclasses__():
        yield model
        yield from models(model)


@pytest.mark.parametrize("model", list(models()), ids=lambda model: model.__name__)
def test_every_setting_says_what_it_is(model):
    assert model.__doc__
    for name, field in model.model_fields.items():
        # a kind is described by its model
        assert field.description or name == "kind", f"{model.__name__}.{name}"


def test_settings_are_frozen_all_the_way_down():
    config = validate(Config, IMAGES, "here")
    for settings in (config, config.data, config.field, config.optim, config.train, config.grid, Sample(run="r")):
        for name in type(settings).model_fields:
            with pytest.raises(ValidationError, match="frozen"):
                setattr(settings, name, getattr(settings, name))
    with pytest.raises(ValidationError, match="frozen"):
        config.new = 1
    hash(config)  # nothing in it can change


@pytest.mark.parametrize("model", [Sample, Evaluate])
def test_the_settings_of_the_verbs_are_strict_too(model):
    assert validate(model, {"run": "r", "count": 30}, "here").count == 30
    for wrong in ({"count": "3"}, {"count": 30.0}, {"count": 0}, {"cuont": 3}, {"run": 3}, {"guidance": -1.0}):
        with pytest.raises(SettingsError, match=rf"^here: .*{next(iter(wrong))}"):
            validate(model, {"run": "r", **wrong}, "here")
    with pytest.raises(SettingsError, match=r"^here: run is missing"):
        validate(model, {}, "here")


def test_every_default_would_be_allowed_in_a_file():
    # pydantic does not check defaults
    for model in models():
        given = {"run": "r"} if "run" in model.model_fields and model is not Config else {}
        settings = model(**given)
        assert validate(model, settings.model_dump(mode="json"), "here") == settings
    unions = {name: get_args(Config.model_fields[name].annotation) for name in ("data", "path", "times", "field")}
    assert all(type(getattr(Config(), name)) is members[0] for name, members in unions.items())


@pytest.mark.parametrize(
    ("size", "crop", "shape", "stored"),
    [
        (None, None, None, None),
        (8, None, (8, 8), None),
        ([8, 12], None, (8, 12), None),
        (8, 10, (8, 8), (10, 10)),
        ([8, 12], [8, 13], (8, 12), (8, 13)),
    ],
)
def test_a_size_is_a_side_or_height_and_width(size, crop, shape, stored):
    data = validate(Config, IMAGES | {"data": {"kind": "images", "size": size, "random_crop": crop}}, "x.yaml").data
    assert (data.shape, data.stored) == (shape, stored)


@pytest.mark.parametrize(
    ("size", "crop", "said"),
    [
        ([8, 9, 10], None, "data.size: (8, 9, 10) is none of null, 2 to 4096 pixels per side, and two of them"),
        ([1, 9], None, "data.size: (1, 9) is none of"),
        (5000, None, "data.size: 5000 is none of"),
        (8, 8, "random_crop 8 must be larger than size 8"),
        ([8, 12], [9, 11], "random_crop 9 x 11 must be larger than size 8 x 12"),
        ([8, 12], [8, 12], "random_crop 8 x 12 must be larger than size 8 x 12"),
        (None, 9, "random_crop 9 must be larger than size None"),
    ],
)
def test_a_size_that_cannot_be_is_one_sentence(size, crop, said):
    with pytest.raises(SettingsError) as error:
        validate(Config, IMAGES | {"data": {"kind": "images", "size": size, "random_crop": crop}}, "x.yaml")
    assert said in str(error.value)
