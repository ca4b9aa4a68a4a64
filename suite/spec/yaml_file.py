"""Spec files as plain mappings: YAML, `a.b.c=value` overrides, and merging of sections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from suite.config.errors import SpecError
from tasks import plain_yaml


def load_file(path: Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """A spec file as a mapping, with `a.b.c=value` overrides applied.

    Raises:
        SpecError: no such file, not YAML, not a mapping, or an override that cannot be applied.
    """
    try:
        data = plain_yaml.load(path.read_text())
    except OSError as error:
        raise SpecError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise SpecError(f"{path}: a mapping of settings is expected")
    for override in overrides:
        key, value = split_override(override)
        data = merged(data, nested(key, value))
    return data


def split_override(text: str) -> tuple[str, Any]:
    """`a.b=value` as key and value, the value read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise SpecError(f"{text}: an override is written key=value, e.g. optimizer.lr=1e-4")
    return key, parse_value(value)


def parse_value(text: str) -> Any:
    """A value on the command line, read as YAML, like one in a file."""
    try:
        return plain_yaml.load(text)
    except yaml.YAMLError:
        return text


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
