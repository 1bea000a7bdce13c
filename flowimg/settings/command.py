"""The command line as settings: `--key value` overrides, read in the same way as a settings file.

--key value   --key=value   --some-key or --some_key   --list 1 2 3   --list [1, 2, 3]   --group.key value
"""

from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any, get_args

import tyro

from flowimg.errors import SettingsError
from flowimg.names import no_text, one_line
from flowimg.settings.base import Model, Settings
from flowimg.settings.reading import changed, flatten, load, nearest, parse_yaml, validate
from flowimg.settings.run import Config, Start
from flowimg.settings.verbs import Estimate
from flowimg.settings.words import Word, allowed_by

OPTIONS: dict[str, tuple[str, type[Settings], dict[str, str]]] = {
    "train": ("how a run is started:", Start, {"resume": "[STEP]", "allow": "KEY ...", "dry_run": "", "profile": ""}),
    "estimate": (
        "a prediction for many GPUs:",
        Estimate,
        {"processes": "N ...", "gpu": "NAME", "samples": "N", "share": "SHARE"},
    ),
}
"""Options of verbs beside the settings of a run: a title, their settings, and the words that follow each."""


def run_settings(verb: str, args: Sequence[str]) -> Config:
    """The settings of CONFIG, a settings file or a run's folder, with the overrides that follow it."""
    known = ", ".join(sorted(str(path) for path in Path("configs").glob("*.yaml"))) or "a YAML file"
    needs = f"a settings file first: {known}"
    source = _first_word(verb, "CONFIG", Config(), args, needs)
    in_folder = Path(source, "config.yaml")
    here = {"run": source, "train.stop_at": None}
    file = changed(load(str(in_folder)), here, source) if in_folder.is_file() else load(source)
    settings = parse(f"{verb} {source}", file, args[1:])
    return settings if settings.run else settings.model_copy(update={"run": file.run})


def start_settings(args: Sequence[str]) -> tuple[Start, list[str]]:
    """`--resume [STEP]`, `--allow KEY ...`, `--dry-run` and `--profile`; and the other words."""
    rest, *parts = _parts(args)
    values: dict[str, Any] = {}
    for part in parts:
        option, _, value = part[0].partition("=")
        name = _key(option)
        if name not in Start.model_fields:
            rest += part
            continue
        words = [*([value] if value else []), *part[1:]]
        if name == "allow":
            if not words:
                raise SettingsError("--allow needs the names of settings that may differ, e.g. --allow optim.lr")
            values[name] = [_key(word) for word in words]
        else:
            values[name] = parse_yaml(words[0], f"--{name}") if words else True
            rest += words[1:]
    return validate(Start, values, "command line"), rest


def prediction_settings(args: Sequence[str]) -> tuple[Estimate, list[str]]:
    """`--processes N ...`, `--gpu`, `--samples` and `--share` of a prediction for many GPUs; and the other words.

    Raises:
        SettingsError: If one is wrong, or the numbers of processes are missing beside the others.
    """
    rest, *parts = _parts(args)
    values: dict[str, Any] = {}
    for option, *words in parts:
        name, equals, value = option.partition("=")
        key = _key(name)
        if key in Estimate.model_fields:
            values[key] = _read(Estimate(), key, [value, *words] if equals else words)
        else:
            rest += [option, *words]
    asked = validate(Estimate, values, "command line")
    if values and not asked.processes:
        raise SettingsError("a prediction needs the numbers of GPUs: for example --processes 8 64 512")
    return asked, rest


def verb_settings(usage: str, model: type[Model], args: Sequence[str], second: str | None = None) -> Model:
    """The settings of a verb that takes RUN first.

    Args:
        usage: The verb and the words that follow it, such as "export RUN FOLDER".
        model: The settings of the verb.
        args: The words after the verb.
        second: The setting that the words after RUN belong to, if any.
    """
    verb, _, words = usage.partition(" ")
    needs = "the folder of a run first, for example runs/digits"
    run = _first_word(verb, words, model(run="RUN"), args, needs)  # type: ignore[call-arg]
    rest = list(args[1:])
    if second and rest and not rest[0].startswith("--"):
        rest.insert(0, f"--{second}")
    return parse(usage, model(run=run), rest)  # type: ignore[call-arg]


def source_settings(verb: str, model: type[Model], args: Sequence[str]) -> tuple[Model, Config | None]:
    """The settings of a verb that takes a source of images, or a settings file or run that names one; and that run."""
    needs = "a source first: a folder of pictures, or a settings file"
    source = _first_word(verb, "SOURCE", model(source="SOURCE"), args, needs)  # type: ignore[call-arg]
    in_folder = Path(source, "config.yaml")
    if not in_folder.is_file() and not source.endswith((".yaml", ".yml")):
        return parse(f"{verb} SOURCE", model(source=source), args[1:]), None  # type: ignore[call-arg]
    run = changed(load(str(in_folder)), {"run": source}, source) if in_folder.is_file() else load(source)
    if not run.data.holds_pictures:
        raise SettingsError(f"{source} is a run on points: this verb is for pictures")
    seed = {"seed": run.seed} if "seed" in model.model_fields else {}
    return parse(f"{verb} SOURCE", model(**dict(run.data), **seed), args[1:]), run


def parse(usage: str, defaults: Model, args: Sequence[str]) -> Model:
    """The defaults with `--key value` overrides; `--help` among them prints all settings, by tyro, and exits.

    Args:
        usage: The verb and the words that follow it, for the help.
        defaults: Settings with the values that hold without overrides.
        args: The overrides.

    Raises:
        SettingsError: If a setting is unknown, or its value is wrong.
    """
    keys = list(flatten(defaults))
    for option, *_ in _parts(args)[1:]:
        option = option.partition("=")[0]
        name = _key(option)
        if name not in [*keys, "help"]:
            raise SettingsError(f"unknown setting {option}: {nearest(name, keys)}")
        group = type(defaults).model_fields.get(name.removesuffix(".kind"))
        # a union has other settings for each kind; the settings of the optimiser are the same for both kinds
        if name.endswith(".kind") and group and get_args(group.annotation):
            raise SettingsError(f"--{name} cannot be given here: choose it in the YAML file, beside its own settings")
    if _asks_for_help(args):
        _print_introduction(usage)
        config = (tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)
        tyro.cli(type(defaults), prog=f"flowimg {usage}", default=defaults, args=["--help"], config=config)
    return override(defaults, args)


def _print_introduction(usage: str) -> None:
    """What the help says before the settings: the options of the verb, and that settings depend on the file."""
    verb = usage.partition(" ")[0]
    if verb in OPTIONS:
        title, model, options = OPTIONS[verb]
        print(title)
        for name, words in options.items():
            print(f"  {f'--{name} {words}'.replace('_', '-'):<17} {model.model_fields[name].description}")
        print()
    if usage.endswith(" CONFIG"):
        print(f"These are the default settings; flowimg {usage} --help shows those of a settings file or a run.\n")


def override(defaults: Model, args: Sequence[str]) -> Model:
    """The defaults with `--key value` overrides, read as a YAML file is, so that the same values are right."""
    stray, *parts = _parts(args)
    if stray:
        raise SettingsError(f"{stray[0]} is not a setting: settings are given as --key value")
    changes = {}
    for option, *words in parts:
        name, equals, value = option.partition("=")
        changes[_key(name)] = _read(defaults, _key(name), [value, *words] if equals else words)
    return changed(defaults, changes, "command line")


def _parts(args: Sequence[str]) -> list[list[str]]:
    """The words before the first option; then each option with the words that follow it."""
    parts: list[list[str]] = [[]]
    for arg in args:
        if arg.startswith("--"):
            parts.append([])
        parts[-1].append(arg)
    return parts


def _key(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


def _asks_for_help(args: Sequence[str]) -> bool:
    return "-h" in args or "--help" in args


def _first_word(verb: str, words: str, defaults: Settings, args: Sequence[str], needs: str) -> str:
    """The word that a verb takes first; `--help` without it prints the default settings and exits.

    Raises:
        SettingsError: If the word is missing; `needs` says what it is.
    """
    if args and not args[0].startswith("-"):
        if problem := no_text(args[0]):
            raise SettingsError(f"flowimg {verb}: {words} is {one_line(args[0])}, {problem}")
        return args[0]
    if _asks_for_help(args):
        parse(f"{verb} {words}", defaults, ["--help"])
    raise SettingsError(f"flowimg {verb} needs {needs}")


def _read(defaults: Settings, key: str, texts: list[str]) -> Any:
    """The words that follow a key, as a value whose words are read later: any word where text is allowed, else YAML."""
    *groups, last = key.split(".")
    holder: Any = reduce(getattr, groups, defaults)
    takes_list = isinstance(getattr(holder, last), tuple)
    if texts in ([], [""]) and not takes_list:
        raise SettingsError(f"--{key} needs a value")
    takes_text = str in allowed_by(type(holder).model_fields[last].annotation)
    parsed = [Word(text) if takes_text else parse_yaml(text, f"--{key}") for text in texts]
    if len(parsed) == 1 and (not takes_list or isinstance(parsed[0], list)):  # "32 64" and "[32, 64]" are both a list
        return parsed[0]
    return [] if texts == [""] else parsed
