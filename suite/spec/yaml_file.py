"""Spec files as plain mappings: YAML, `a.b.c=value` overrides, and merging of sections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from suite.config.errors import MissingError, SpecError
from suite.spec.checkpoint_paths import check_found, seen_from_here
from tasks import plain_yaml
from tasks.plain_text import NoSuchFile, Unreadable, cut, shown

MOST_PARTS = 16
"""Parts of the longest key."""


def load_file(path: Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """A spec file as a mapping, with `a.b.c=value` overrides applied.

    Checkpoints that the file names are found from its folder, or else, like those of overrides, from the working
    directory.

    Raises:
        MissingError: no such file, or no such checkpoint.
        SpecError: not YAML, not a mapping, or an override that cannot be applied.
    """
    try:
        data = plain_yaml.read(path)
    except NoSuchFile as error:
        raise MissingError(f"{path}: {error}") from None
    except Unreadable as error:
        raise SpecError(f"{path}: {error}{_files_in(path)}") from None
    if not isinstance(data, dict):
        what = "it is empty" if data is None else f"not {shown(data)}"
        raise SpecError(f"{path}: a mapping of settings is expected (key: value), {what}")
    file = result = seen_from_here(data, path.parent)
    for override in overrides:
        key, value = split_override(override)
        result = merged(result, nested(key, value))
    check_found(result, file, path.parent)
    return result


def _files_in(path: Path) -> str:
    """Which spec files there are, where a folder was named."""
    if not path.is_dir():
        return ""
    files = sorted([*path.glob("*.yaml"), *path.glob("*.yml")])[:3]
    return f". Name a file in it: {', '.join(map(str, files))}" if files else ", and it has no .yaml"


def split_override(text: str) -> tuple[str, Any]:
    """`a.b=value` as key and value, the value read as YAML."""
    key, equals, value = text.partition("=")
    parts = key.split(".")
    if not equals or not all(part.strip() for part in parts):
        raise SpecError(f"{cut(text)}: an override is written key=value, e.g. optimizer.lr=1e-4")
    if len(parts) > MOST_PARTS:
        raise SpecError(f"{cut(text)}: a key of {len(parts)} parts; no setting has so many")
    parsed = parse_value(value, key)
    if parsed == value and value.lstrip().startswith(("[", "{")):
        raise SpecError(
            f"{cut(key)}: {cut(value)} is neither a list nor a section: brackets are not closed, or a text in it has "
            "to be quoted, such as '*norm*'"
        )
    return key, parsed


def parse_value(text: str, key: str = "value") -> Any:
    """A value on the command line, read as YAML, like one in a file; what is not YAML is text.

    Args:
        key: what it is the value of, for messages.

    Raises:
        SpecError: it is missing, or not plain.
    """
    try:
        node = plain_yaml.compose(text)
        if node is None:
            name = cut(key)
            raise SpecError(f"{name}=: a value is missing after the equals sign. For none at all write {name}=null")
        return plain_yaml.construct(node)
    except plain_yaml.NotYaml:
        return text
    except Unreadable as error:
        raise SpecError(f"{cut(key)}: {str(error).removeprefix('line 1: ')}") from None


def nested(key: str, value: Any) -> dict[str, Any]:
    """{"a": {"b": value}} for `a.b`."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` on top; mappings are merged, everything else is replaced.

    A bare name (`objective: npo`) is merged with a mapping as the section that it is short for.
    """
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(below, str) and isinstance(value, Mapping) and "name" not in value:
            below = {"name": below}
        result[key] = merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result
