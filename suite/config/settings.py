"""Settings: frozen, strict, and rejected with a message that says what to change.

`Settings` is the base of everything a spec contains. `parse` makes one from a mapping (from YAML or the command line),
and turns pydantic's errors into ours: the key, what is allowed, the nearest match.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from suite.config.errors import SpecError
from tasks.expected import expected
from tasks.files import nearest
from tasks.plain_text import DEPTH, SHOWN, Unreadable, check_characters, cut, shown
from tasks.plugins import left_out


class Settings(BaseModel):
    """A frozen, strict group of settings. Numbers are finite; text is not converted to a number, nor 1 to true."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True
    )

    def changed(self) -> dict[str, Any]:
        """The settings that differ from their defaults, as plain JSON values; `name` always stays.

        This is the canonical form: a setting that is added later does not change old ids while it is at its default.
        """
        plain = {}
        for key, value in self:
            if key != "name" and value == type(self).model_fields[key].get_default(call_default_factory=True):
                continue
            plain[key] = value.changed() if isinstance(value, Settings) else _plain(value)
        return plain


S = TypeVar("S", bound=Settings)


def parse(kind: type[S], data: Mapping[str, Any], prefix: str = "") -> S:
    """Validate `data` as settings of this kind.

    Args:
        prefix: where the settings stand in the file (`optimizer.`), for the message.

    Raises:
        SpecError: naming the key, the allowed values and the nearest match.
    """
    if not isinstance(data, Mapping):
        raise SpecError(f"{prefix.rstrip('.') or 'spec'}: a section is expected, keys with values, not {shown(data)}")
    check_plain(data, prefix)
    try:
        return kind.model_validate_json(json.dumps(data))
    except ValidationError as error:
        # Only the most informative error: an unknown key usually causes the others, and a bad value a list too short.
        worst = min(
            error.errors(), key=lambda e: (e["type"] != "extra_forbidden", e["type"] == "too_short", len(e["loc"]))
        )
        raise SpecError(_sentence(kind, worst, data, prefix)) from None


def check_plain(value: Any, prefix: str = "", where: str = "", depth: int = 0) -> None:
    """Check that a value can be written as canonical JSON.

    Args:
        where: its key; `prefix` is what stands before it in messages.

    Raises:
        SpecError: naming the key of what cannot.
    """
    key = prefix + where if where else prefix.rstrip(".") or "spec"
    if isinstance(value, Mapping | list | tuple):
        if depth > DEPTH:
            raise SpecError(f"{key}: more than {DEPTH} sections or lists within each other")
        for name, below in value.items() if isinstance(value, Mapping) else enumerate(value):
            if isinstance(value, Mapping) and not isinstance(name, str):
                raise SpecError(f"{key}: the key {shown(name)} is no text. Quote it")
            check_plain(below, prefix, dotted(where, name), depth + 1)
    elif isinstance(value, str):
        try:
            check_characters(value)
        except Unreadable as error:
            raise SpecError(f"{key}: {error}") from None
    elif isinstance(value, float) and not math.isfinite(value):
        raise SpecError(f"{key}: {value} is not finite, and a finite number is expected")
    elif isinstance(value, int) and value.bit_length() > 1024:
        raise SpecError(f"{key}: {shown(value)} is too large")
    elif not isinstance(value, int | float | None):
        raise SpecError(f"{key}: {shown(value)} is neither a number nor text, nor a list or a section of such values")


def dotted(where: str, name: str | int) -> str:
    """A key below another one, for messages. One that is no plain word is quoted, so that a message stays one line."""
    word = str(name)
    plain = len(word) <= SHOWN and word.isprintable() and not {" ", ":"} & set(word)
    return ".".join([*([where] if where else []), word if plain and word else shown(word)])


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, str) else value  # a StrEnum is written as its value


def _sentence(kind: type[Settings], error: ErrorDetails, data: Mapping[str, Any], prefix: str) -> str:
    loc, section, family = _locate(kind, error["loc"])
    where = prefix + reduce(dotted, loc, "") if loc else prefix.rstrip(".")
    match error["type"]:
        case "extra_forbidden":
            allowed = list(section.model_fields) if section else []
            names = [name for name, member in family.items() if member is section]
            if names and (others := [name for name, member in family.items() if loc[-1] in member.model_fields]):
                hint = f" It is a setting of {', '.join(others)}, not of {names[0]}."
            else:
                known = keys_of(section, _at(data, loc[:-1])) if section else ()
                hint = nearest_key(loc[-1], known, prefix + "".join(f"{name}." for name in loc[:-1]))
            return f"{where}: unknown key.{hint} (allowed{' of ' + names[0] if names else ''}: {', '.join(allowed)})"
        case "union_tag_invalid":
            allowed = [tag.strip("' ") for tag in error["ctx"]["expected_tags"].split(",")]
            tag = _at(error["input"], ["name"])
            name = tag if isinstance(tag, str) and len(tag) <= SHOWN and tag.isprintable() else shown(tag)
            hint = left_out(name) or nearest(name, allowed)
            return f"{where}.name: unknown: {name}.{hint} (allowed: {', '.join(allowed)})"
        case "union_tag_not_found":
            return f"{where}.name: missing. Say which one: {where}.name=NAME (allowed: {', '.join(family)})"
        case "missing":
            return f"{where}: missing, and it has no default"
        case "value_error":
            message = str(error["ctx"]["error"])
            inside = section is not None and where and message.partition(":")[0] in section.model_fields
            return f"{where}{'.' if inside else ': '}{message}" if where else message
        case _:
            named = section is not None and "name" in section.model_fields and isinstance(error["input"], str)
            hint = f". Write {where}.name={cut(error['input'])}" if named else ""
            return f"{where}: {expected(error)}{hint}"


def _at(data: Any, path: Sequence[str]) -> Any:
    """The value at a path; None where there is none."""
    for name in path:
        data = data.get(name) if isinstance(data, Mapping) else None
    return data


def nearest_key(key: str, known: Iterable[str], prefix: str = "") -> str:
    """` Did you mean optimizer.lr?`: a dotted key whose last part is this one's, or the most similar; or no text.

    Args:
        prefix: of the known keys, for the message.
    """
    keys = sorted(known, key=lambda one: (one.count("."), one))
    close = difflib.get_close_matches(key[:SHOWN], keys, n=1, cutoff=0.8) if "." in key else []
    if close:
        return f" Did you mean {prefix}{close[0]}?"
    last = key.rpartition(".")[2]
    same = [one for one in keys if one.rpartition(".")[2] == last and one != key]
    top = [one for one in same if one.count(".") == (same[0].count(".") if same else 0)]
    if top:
        return f" Did you mean {' or '.join(prefix + one for one in top[:3])}?"
    level = [one for one in keys if one.count(".") == key.count(".")]
    close = difflib.get_close_matches(key[:SHOWN], level, n=1, cutoff=0.5)
    close = close or difflib.get_close_matches(key[:SHOWN], keys, n=1, cutoff=0.5)
    return f" Did you mean {prefix}{close[0]}?" if close else ""


def keys_of(kind: type[Settings], data: Any, prefix: str = "") -> set[str]:
    """Dotted keys of the settings that `data` may have, sections included.

    Args:
        data: settings whose names choose the sections; None for the keys of all sections that could be chosen.
    """
    return set(types_of(kind, data, prefix))


def types_of(kind: type[Settings], data: Any, prefix: str = "") -> dict[str, Any]:
    """The same keys with the types of their values. Where sections differ in one, it is that of the last."""
    types: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        types[prefix + name] = field.annotation
        section, members = settings_in(field.annotation)
        below = data.get(name) if isinstance(data, Mapping) else None
        if members and data is not None:
            chosen = below if isinstance(below, str) else _at(below, ["name"])
            chosen = _default_name(field) if chosen is None else chosen
            section = members.get(chosen) if isinstance(chosen, str) else None
            types[f"{prefix}{name}.name"] = str
        for one in [section] if section else members.values() if data is None else []:
            inside = None if data is None else below if isinstance(below, Mapping) else {}
            types |= types_of(one, inside, f"{prefix}{name}.")
    return types


def is_whole(annotation: Any) -> bool:
    """Whether a setting of this type is a whole number, and never a fraction."""
    kinds = {annotation, *get_args(annotation)}
    kinds |= {inner for one in kinds for inner in get_args(one)}
    return int in kinds and float not in kinds


def _default_name(field: Any) -> str | None:
    """Name of a field's default section, if it has one."""
    return getattr(field.get_default(call_default_factory=True), "name", None)


def _locate(
    kind: type[Settings], loc: tuple[int | str, ...]
) -> tuple[list[str], type[Settings] | None, dict[str, type[Settings]]]:
    """The key path without pydantic's union tags, the settings class at its end, and its union's members by name."""
    path: list[str] = []
    section: type[Settings] | None = kind
    family: dict[str, type[Settings]] = {}
    for part in loc:
        if section is None and part in family:
            section = family[str(part)]
            continue
        path.append(str(part))
        field = section.model_fields.get(str(part)) if section else None
        if field:
            section, family = settings_in(field.annotation)
    return path, section, family


def settings_in(annotation: Any) -> tuple[type[Settings] | None, dict[str, type[Settings]]]:
    """The settings class of an annotation, or the members by name where it is a union of settings classes."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation, {}
    members: dict[str, type[Settings]] = {}
    for arg in getattr(annotation, "__args__", ()):
        if isinstance(arg, type) and issubclass(arg, Settings):
            name = arg.model_fields.get("name")
            members[name.default if name else ""] = arg
    if list(members) == [""]:
        return members[""], {}
    return None, members
