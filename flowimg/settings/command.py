"""The command line as settings: `--key value` overrides, read as a settings file is read.

--key value   --key=value   --some-key or --some_key   --list 1 2 3   --list [1, 2, 3]   --group.key value
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import tyro

from flowimg.errors import SettingsError
from flowimg.settings.base import Model, Settings
from flowimg.settings.reading import changed, flatten, load, nearest, parse_yaml, validate
from flowimg.settings.run import Config, Start


def run_settings(verb: str, args: Sequence[str]) -> Config:
    """The settings of CONFIG with the overrides that follow it."""
    if not args or args[0].startswith("-"):
        if any(arg in ("-h", "--help") for arg in args):
            print(f"usage: flowimg {verb} CONFIG [--KEY VALUE ...]; the keys below are those of the default settings\n")
            parse(verb, Config(), ["--help"])
        known = ", ".join(sorted(str(path) for path in Path("configs").glob("*.yaml"))) or "a YAML file"
        raise SettingsError(f"flowimg {verb} needs a settings file first: {known}")
    kept = Path(args[0], "config.yaml")
    if kept.is_file():  # a run's folder is enough to continue it
        file = load(str(kept)).model_copy(update={"run": args[0]})
        file = file.model_copy(update={"train": file.train.model_copy(update={"stop_at": None})})
    else:
        file = load(args[0])
    settings = parse(f"{verb} {args[0]}", file, args[1:])
    return settings if settings.run else settings.model_copy(update={"run": file.run})


def _start_help(verb: str) -> str:
    """What the help of `train` says beside the settings."""
    told = [
        ("--resume [STEP]", str(Start.model_fields["resume"].description)),
        ("--allow KEY ...", str(Start.model_fields["allow"].description)),
        ("--dry-run", str(Start.model_fields["dry_run"].description)),
        ("--profile", str(Start.model_fields["profile"].description)),
    ]
    lines = "\n".join(f"  {option:<16} {text}" for option, text in told)
    return f"how it is started:\n{lines}\n\n" if verb == "train" else ""


def start_settings(args: Sequence[str]) -> tuple[Start, list[str]]:
    """`--resume [STEP]`, `--allow KEY ...`, `--dry-run` and `--profile`, and the other words."""
    names = {f"--{name.replace('_', '-')}": name for name in Start.model_fields}
    given: dict[str, Any] = {}
    rest: list[str] = []
    name = ""
    for arg in args:
        option, _, value = arg.partition("=")
        option = option.replace("_", "-")
        if arg.startswith("--"):
            name = names.get(option, "")
            if name:
                given[name] = [value] if value else []
                continue
        if not name or (given[name] and name != "allow"):
            rest.append(arg)
        else:
            given[name].append(arg)
    if "allow" in given and not given["allow"]:
        raise SettingsError("--allow needs the names of settings that may differ, for example --allow optim.lr")
    values = {
        key: [word.removeprefix("--").replace("-", "_") for word in words]
        if key == "allow"
        else (parse_yaml(words[0], f"--{key}") if words else True)
        for key, words in given.items()
    }
    return validate(Start, values, "command line"), rest


def verb_settings(verb: str, model: type[Model], args: Sequence[str], second: str | None = None) -> Model:
    """The settings of a verb that takes RUN first; `second` is the setting that words after RUN stand for."""
    if any(arg in ("-h", "--help") for arg in args):
        more = {None: "", "out": " FOLDER", "pictures": " PICTURE ...", "others": " [RUN ...]"}[second]
        print(f"usage: flowimg {verb} RUN{more} [--KEY VALUE ...]\n")
        parse(verb, model(run="RUN"), ["--help"])  # type: ignore[call-arg]
    if not args or args[0].startswith("-"):
        raise SettingsError(f"flowimg {verb} needs the folder of a run first, for example runs/digits")
    rest = list(args[1:])
    if second and rest and not rest[0].startswith("--"):
        rest.insert(0, f"--{second}")
    return parse(verb, model(run=args[0]), rest)  # type: ignore[call-arg]


def source_settings(verb: str, model: type[Model], args: Sequence[str]) -> tuple[Model, Config | None]:
    """The settings of a verb that takes a source first, or a settings file or run whose data are meant."""
    if any(arg in ("-h", "--help") for arg in args):
        print(f"usage: flowimg {verb} SOURCE [--KEY VALUE ...]\n")
        parse(verb, model(source="SOURCE"), ["--help"])  # type: ignore[call-arg]
    if not args or args[0].startswith("-"):
        raise SettingsError(f"flowimg {verb} needs a source first: a folder of pictures, or a settings file")
    kept = Path(args[0], "config.yaml")
    if not kept.is_file() and not args[0].endswith((".yaml", ".yml")):
        return parse(verb, model(source=args[0]), args[1:]), None  # type: ignore[call-arg]
    run = load(str(kept) if kept.is_file() else args[0])
    if not run.data.holds_pictures:
        raise SettingsError(f"{args[0]} is a run on points: this verb is for pictures")
    return parse(
        verb, model(**dict(run.data), **({"seed": run.seed} if "seed" in model.model_fields else {})), args[1:]
    ), run


def parse(verb: str, defaults: Model, args: Sequence[str]) -> Model:
    """The defaults with `--key value` overrides; `--help` among them prints all settings, by tyro, and exits."""
    keys = list(flatten(defaults))
    for arg in args:
        name = arg.removeprefix("--").split("=")[0].replace("-", "_")
        if arg.startswith("--") and name not in [*keys, "help"]:
            raise SettingsError(f"unknown setting {arg.split('=')[0]}: {nearest(name, keys)}")
        group = type(defaults).model_fields.get(name.removesuffix(".kind"))
        # a group that is another one for every kind; the optimiser's settings are the same for both of its
        if name.endswith(".kind") and arg.startswith("--") and group and get_args(group.annotation):
            raise SettingsError(f"--{name} cannot be given here: choose it in the YAML file, beside its own settings")
    if any(arg in ("-h", "--help") for arg in args):
        print(_start_help(verb.split()[0]), end="")
        tyro.cli(
            type(defaults),
            prog=f"flowimg {verb}",
            default=defaults,
            args=["--help"],
            config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
        )
    return override(defaults, args)


def override(defaults: Model, args: Sequence[str]) -> Model:
    """The defaults with `--key value` overrides, read as the YAML file is, so that the same values are right."""
    given: dict[str, list[str]] = {}
    key = ""
    for arg in args:
        if arg.startswith("--"):
            name, equals, value = arg.removeprefix("--").partition("=")
            key = name.replace("-", "_")
            given[key] = [value] if equals else []
        elif not key:
            raise SettingsError(f"{arg} is not a setting: settings are given as --key value")
        else:
            given[key].append(arg)
    return changed(defaults, {key: _read(defaults, key, texts) for key, texts in given.items()}, "command line")


def _read(defaults: Settings, key: str, texts: list[str]) -> Any:
    """The words that follow a key as a value."""
    *groups, last = key.split(".")
    holder: Any = defaults
    for group in groups:
        holder = getattr(holder, group)
    many = isinstance(getattr(holder, last), tuple)
    if texts in ([], [""]) and not many:
        raise SettingsError(f"--{key} needs a value")
    parsed = [_value(text, type(holder).model_fields[last].annotation, f"--{key}") for text in texts]
    one = len(parsed) == 1 and (not many or isinstance(parsed[0], list))  # "32 64" and "[32, 64]" are both a list
    return parsed[0] if one else [] if texts == [""] else parsed


def _value(text: str, annotation: Any, where: str) -> Any:
    """One word of the command line as a plain value: text where text may stand, else YAML."""
    allowed = _members(annotation)
    if text in ("none", "None", "null") and type(None) in allowed:
        return None
    return text if str in allowed else parse_yaml(text, where)


def _members(annotation: Any) -> list[Any]:
    """The plain types of a union, without their limits."""
    inner = get_args(annotation)
    return [member for part in inner for member in _members(part)] if inner else [annotation]
