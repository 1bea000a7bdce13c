"""Reading and writing settings as YAML, with one sentence for each wrong key or value.

The type of a setting decides how its word is read (`words`) and a list is read as a tuple; nothing else is coerced.
"""

import json
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, get_args

import yaml
from pydantic import ValidationError

from flowimg.errors import SettingsError
from flowimg.names import no_text, one_line
from flowimg.settings.base import Model, Settings
from flowimg.settings.run import Config, members
from flowimg.settings.words import Quoted, Word, plain, quoted, read_words

MOST_YAML = 2**20
"""Largest size of a settings file in bytes."""
WORD, TYPES = "!word", ("str", "seq", "map")
"""The tag of a word without quotes, and the types of YAML that settings need."""


class _Loader(yaml.SafeLoader):
    """YAML of words, lists and groups, without aliases and tags, where a key given twice is an error.

    A word without quotes becomes a `Word`: what it means, its setting decides.
    """

    yaml_constructors: ClassVar = {
        tag: yaml.SafeLoader.yaml_constructors[tag] for tag in (None, *(f"tag:yaml.org,2002:{t}" for t in TYPES))
    }

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        if kind is yaml.ScalarNode and implicit[0]:
            return WORD
        return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):  # ten lines of aliases can expand to gigabytes
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read", self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: list[Any] = []
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            if key in keys:
                raise yaml.constructor.ConstructorError(None, None, f"{key} is given twice", key_node.start_mark)
            keys.append(key)
        return super().construct_mapping(node, deep)


_Loader.add_constructor(WORD, lambda loader, node: Word(node.value))


class _Dumper(yaml.SafeDumper):
    """YAML in which text is quoted where we, or a reader of YAML 1.1, would read something else."""


_Dumper.add_representer(Quoted, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'"))


def parse_yaml(text: str, where: str) -> Any:
    """YAML text as lists, groups and words, which the settings read; `where` names it in errors.

    Raises:
        SettingsError: If the text is not YAML.
    """
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = str(getattr(error, "problem", error)).splitlines()[0]
        raise SettingsError(f"{where}{line}: not valid YAML: {problem}") from None


def load(file: str) -> Config:
    """The settings in a YAML file; those that it leaves out have their defaults.

    Raises:
        SettingsError: If there is no such file, or it does not hold settings.
    """
    path = Path(file)
    try:
        if path.stat().st_size > MOST_YAML:
            raise SettingsError(f"{file} is longer than any settings: {path.stat().st_size:,} bytes")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise SettingsError(f"there is no settings file {file}{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} cannot be read as a settings file: {error}") from None
    values = parse_yaml(text, file)
    values = plain(values) if isinstance(values, Word) else values
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise SettingsError(f"{file} must hold settings as `key: value` lines, not a {type(values).__name__}")
    config = validate(Config, values, file)
    return config if config.run else config.model_copy(update={"run": f"runs/{path.stem}"})


def validate(model: type[Model], values: dict[str, Any], where: str) -> Model:
    """Settings from plain values, and from words that are read here.

    Raises:
        SettingsError: With one line for each wrong key or value; `where` opens it.
    """
    for key, text in _texts(values):
        if problem := no_text(text):
            raise SettingsError(f"{one_line(where)}: {key} is {one_line(text)}, {problem}")
    try:
        # pydantic's strict mode accepts a JSON list for a tuple, and coerces nothing else; a path becomes text
        return model.model_validate_json(json.dumps(read_words(values, model), default=str))
    except ValidationError as error:
        raise SettingsError("\n".join(f"{where}: {line}" for line in _explain(error, model))) from None
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{where}: {error}") from None


def _texts(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """All texts among plain values, with their dotted keys."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _texts(value, f"{prefix}{key}.")
        several = value if isinstance(value, list | tuple) else [value]
        yield from ((f"{prefix}{key}", text) for text in several if isinstance(text, str))


def changed(settings: Model, changes: Mapping[str, Any], where: str) -> Model:
    """The same settings with other values, by dotted keys: {"train.steps": 300}.

    Raises:
        SettingsError: With one line for each wrong key or value; `where` opens it.
    """
    values: dict[str, Any] = settings.model_dump(mode="json")
    for key, value in changes.items():
        *groups, last = key.split(".")
        holder: Any = values
        for group in groups:
            holder = holder.get(group) if isinstance(holder, dict) else None
        if not isinstance(holder, dict) or last not in holder:
            raise SettingsError(f"{where}: unknown key {key}: {nearest(key, list(flatten(settings)))}")
        holder[last] = value
    return validate(type(settings), values, where)


def dump(settings: Settings) -> str:
    """Settings as YAML, every key with its value."""
    values = quoted(settings.model_dump(mode="json"), type(settings))
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, default_flow_style=None)


def flatten(settings: Settings, prefix: str = "") -> dict[str, Any]:
    """Settings as dotted keys and their values, in order."""
    flat: dict[str, Any] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Settings) else {f"{prefix}{name}": value}
    return flat


def nearest(name: str, names: list[str]) -> str:
    """A hint with the nearest right name, or with all names if they are few."""
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    # or a name with the same last word: `lr` for `optim.lr`
    near = near or [other for other in names if other.split(".")[-1] == name.split(".")[-1]][:1]
    if near:
        return f"did you mean {near[0]}?"
    return f"known are {', '.join(names)}" if len(names) <= 20 else "see --help for all"


def _choose(given: Any, allowed: list[str]) -> str:
    """A hint with the nearest allowed value, or with all of them."""
    near = get_close_matches(str(given), allowed, n=1)
    return f"did you mean {near[0]}?" if near else f"allowed are {', '.join(allowed)}"


def _explain(error: ValidationError, model: type[Settings]) -> Iterator[str]:
    """A sentence for each mistake in the values of a model."""
    details = error.errors(include_url=False)
    for detail in details:
        location, kind, given, context = detail["loc"], detail["type"], detail["input"], detail.get("ctx", {})
        if kind == "too_short" and any(
            len(other["loc"]) > len(location) and other["loc"][: len(location)] == location for other in details
        ):
            continue  # pydantic does not count the wrong items of a list, which have sentences of their own
        keys, holder = _locate(location, model)
        name = ".".join(keys) or "settings"
        match kind:
            case "extra_forbidden":
                names = list(holder.model_fields) if holder else []
                group = ".".join(keys[:-1])
                if model is Config and not group:
                    names += flatten(Config())
                yield f"unknown key {keys[-1]}{f' in {group}' if group else ''}: {nearest(keys[-1], names)}"
            case "union_tag_not_found":
                kinds = [member.model_fields["kind"].default for member in members(keys[-1])]
                yield f"{name}.kind is missing: give one of {', '.join(kinds)}"
            case "union_tag_invalid":
                kinds = [tag.strip(" '") for tag in context["expected_tags"].split(",")]
                yield f"{name}.kind is {context['tag']}: {_choose(context['tag'], kinds)}"
            case "value_error":
                yield f"{name}: {context['error']}" if keys else str(context["error"])
            case "literal_error":
                allowed = context["expected"].replace("'", "").replace(" or ", ", ").split(", ")
                yield f"{name} is {given!r}: {_choose(given, allowed)}"
            case "missing":
                yield f"{name} is missing"
            case _:
                message = re.sub("^(Input|Tuple|String) ", "", detail["msg"].split(" after validation")[0])
                message = message.replace("an object", "a group of settings").replace("a valid array", "a list")
                yield f"{name} is {given!r}, but {message}"


def _locate(location: tuple[int | str, ...], model: type[Settings]) -> tuple[list[str], type[Settings] | None]:
    """The keys of a value as a user wrote them, without the tags of unions that pydantic adds, and its class."""
    keys: list[str] = []
    holder: type[Settings] | None = model
    inside: Any = model
    for part in location:
        members = [member for member in get_args(inside) if isinstance(member, type) and issubclass(member, Settings)]
        tagged = [member for member in members if member.model_fields["kind"].default == part]
        if tagged:
            inside = tagged[0]
            continue
        if isinstance(part, int):
            keys[-1] += f"[{part}]"
            continue
        holder = inside if isinstance(inside, type) and issubclass(inside, Settings) else None
        keys.append(str(part))
        field = holder.model_fields.get(str(part)) if holder else None
        inside = field.annotation if field else None
    return keys, holder
