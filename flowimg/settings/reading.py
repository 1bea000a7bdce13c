"""Reading settings: YAML in, resolved YAML out, and one sentence for each wrong key or value.

A settings file is read by `load`, which refuses unknown keys, wrong types and values out of range with one sentence
each, and names the nearest right key. `2e-4` is a number and a YAML list a tuple; nothing else is coerced.
"""

import json
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from flowimg.errors import SettingsError
from flowimg.settings.base import Model, Settings
from flowimg.settings.run import Config, members

MOST_YAML = 2**20
"""Characters of a settings file at most."""


class _Loader(yaml.SafeLoader):
    """YAML as people write it: `2e-4` is a number, a key given twice is an error; no tags of objects, no aliases."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):  # ten lines of them can stand for gigabytes
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


_FLOAT = r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(_FLOAT), list("-+0123456789"))


def parse_yaml(text: str, where: str) -> Any:
    """YAML text as plain values; `where` names it in errors.

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
    """The settings in a YAML file; what it leaves out has its default.

    Raises:
        SettingsError: If there is no such file, or it does not hold settings.
    """
    path = Path(file)
    try:
        if path.stat().st_size > MOST_YAML:
            raise SettingsError(f"{file} is longer than any settings: {path.stat().st_size:,} bytes")
        text = path.read_text()
    except FileNotFoundError:
        near = get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise SettingsError(f"there is no settings file {file}{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} cannot be read as a settings file: {error}") from None
    values = parse_yaml(text, file)
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise SettingsError(f"{file} must hold settings as `key: value` lines, not a {type(values).__name__}")
    if values.get("run") is None:
        values["run"] = f"runs/{path.stem}"
    return validate(Config, values, file)


def validate(model: type[Model], values: dict[str, Any], where: str) -> Model:
    """Plain values as settings.

    Raises:
        SettingsError: With one line for each wrong key or value; `where` opens it.
    """
    try:
        # as JSON, pydantic's strict mode takes lists for tuples and coerces nothing else; a YAML date is text there
        return model.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise SettingsError("\n".join(f"{where}: {line}" for line in _explain(error, model))) from None
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{where}: {error}") from None


def changed(settings: Model, changes: Mapping[str, Any], where: str) -> Model:
    """The same settings with other values, by dotted keys: {"train.steps": 300}.

    Raises:
        SettingsError: With one line for each wrong key or value; `where` opens it.
    """
    values: dict[str, Any] = settings.model_dump(mode="json")
    place: Any
    for key, value in changes.items():
        *groups, last = key.split(".")
        place = values
        for group in groups:
            place = place.get(group) if isinstance(place, dict) else None
        if not isinstance(place, dict) or last not in place:
            raise SettingsError(f"{where}: unknown key {key}: {nearest(key, list(flatten(settings)))}")
        place[last] = value
    return validate(type(settings), values, where)


def dump(settings: Settings) -> str:
    """Settings as YAML, every key with its value."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, default_flow_style=None)


def flatten(settings: Settings, prefix: str = "") -> dict[str, Any]:
    """Settings as dotted keys and their values, in order."""
    flat: dict[str, Any] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Settings) else {f"{prefix}{name}": value}
    return flat


def nearest(name: str, names: list[str]) -> str:
    """A hint that names the nearest right name, or all of a few."""
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    # the same last word elsewhere: `lr` for `optim.lr`
    near = near or [other for other in names if other.split(".")[-1] == name.split(".")[-1]][:1]
    if near:
        return f"did you mean {near[0]}?"
    return f"known are {', '.join(names)}" if len(names) <= 16 else "see --help for all"


def _explain(error: ValidationError, model: type[Settings]) -> Iterator[str]:
    details = error.errors(include_url=False)
    for detail in details:
        location, kind, given = detail["loc"], detail["type"], detail["input"]
        if kind == "too_short" and any(
            len(other["loc"]) > len(location) for other in details if other["loc"][: len(location)] == location
        ):
            continue  # pydantic does not count the wrong items of a list, which are named on their own
        keys, holder = _locate(location, model)
        name = ".".join(keys) or "settings"
        if kind == "extra_forbidden":
            names = list(holder.model_fields) if holder else []
            inside = f" in {'.'.join(keys[:-1])}" if keys[:-1] else ""
            everywhere = list(flatten(Config())) if model is Config else names
            near = get_close_matches(keys[-1], names, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else nearest(keys[-1], names if keys[:-1] else names + everywhere)
            yield f"unknown key {keys[-1]}{inside}: {hint}"
        elif kind in ("union_tag_invalid", "union_tag_not_found"):
            kinds = [tag.strip(" '") for tag in detail["ctx"].get("expected_tags", "").split(",")]
            if kind == "union_tag_not_found":
                kinds = [member.model_fields["kind"].default for member in members(keys[-1])]
                yield f"{name}.kind is missing: give one of {', '.join(kinds)}"
            else:
                tag = detail["ctx"]["tag"]
                near = get_close_matches(tag, kinds, n=1)
                hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(kinds)}"
                yield f"{name}.kind is {tag}: {hint}"
        elif kind == "value_error":
            yield f"{name}: {detail['ctx']['error']}" if keys else str(detail["ctx"]["error"])
        elif kind == "literal_error":
            allowed = detail["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
            near = get_close_matches(str(given), allowed, n=1)
            hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(allowed)}"
            yield f"{name} is {given!r}: {hint}"
        elif kind == "missing":
            yield f"{name} is missing"
        else:
            message = detail["msg"].split(" after validation")[0]
            for opening in ("Input ", "Tuple ", "String "):
                message = message.removeprefix(opening)
            message = message.replace("an object", "a group of settings").replace("a valid array", "a list")
            yield f"{name} is {given!r}, but {message}"


def _locate(location: tuple[int | str, ...], model: type[Settings]) -> tuple[list[str], type[Settings] | None]:
    """The keys of an error's place as a user wrote them (pydantic puts a union's tag between), and what holds it."""
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
