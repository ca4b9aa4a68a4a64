"""Folders of checkpoints in a spec file, which may be named as seen from the file.

A relative name in a file is looked for in the file's folder first, then in the working directory. One that is found in
the file's folder is rewritten as the path to it from the working directory, as if it had been written so: workers share
that directory, and names that were relative to it stay as they are, and with them the ids of trials.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from suite.config.errors import MissingError
from suite.config.settings import dotted

KEYS = (("model", "name"), ("anchors", "target"), ("anchors", "retrained"))
"""Settings that name a checkpoint."""

Change = Callable[[str, str], str]
"""A name for a key and its name."""


def seen_from_here(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A spec file's mapping with the names of checkpoints rewritten that are found in the file's folder."""

    def rewritten(key: str, name: str) -> str:
        found = folder / name
        if name == "tiny" or os.path.isabs(name) or not os.path.isdir(found) or _same(found, name):
            return name
        path = os.path.relpath(found)
        return os.path.join(os.curdir, path) if path == "tiny" else path

    published = _has_published(data)
    return _changed(data, lambda key, name: name if published and "/" not in name else rewritten(key, name))


def check_found(data: Mapping[str, Any], file: Mapping[str, Any], folder: Path) -> None:
    """Check that a name that can only be a path names a folder.

    Args:
        data: the mapping with what overrides it.
        file: the mapping as it stands in the file, in this folder.

    Raises:
        MissingError: naming the key, and where the folder was looked for.
    """
    published = _has_published(data)
    in_file: set[tuple[str, str]] = set()

    def note(key: str, name: str) -> str:
        in_file.add((key, name))
        return name

    def check(key: str, name: str) -> str:
        owner_and_model = name.count("/") == 1 or (published and "/" not in name)
        if name == "tiny" or os.path.isdir(os.path.expanduser(name)):
            return name
        if name.startswith((".", "/", "~")) or not owner_and_model:
            places = [folder.absolute()] if (key, name) in in_file and name[:1] not in ("/", "~") else []
            where = " or ".join(map(str, dict.fromkeys([*places, Path.cwd()])))
            looked = "" if name[:1] in ("/", "~") else f" in {where}"
            raise MissingError(
                f"{key}: there is no folder {dotted('', name)}{looked}. Name a folder with a model, tiny, or a hub id "
                "owner/model"
            )
        return name

    _changed(file, note)
    _changed(data, check)


def _same(found: Path, name: str) -> bool:
    """Whether a name is that of the same folder in the working directory."""
    return os.path.isdir(name) and os.path.samefile(found, name)


def _has_published(data: Mapping[str, Any]) -> bool:
    """Whether a trial of the file may take published checkpoints, whose models are named without a slash."""
    return any(value == "published" for value in _everything(data))


def _everything(value: Any) -> Iterator[Any]:
    yield value
    below = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    for one in below:
        yield from _everything(one)


def _changed(data: Mapping[str, Any], change: Change) -> dict[str, Any]:
    """The mapping with the names of checkpoints changed: those of the trial, of cases, grid and space."""
    result = _of_trial(data, "", change)
    search = result.get("search")
    if isinstance(search, Mapping):
        result["search"] = search = dict(search)
        if isinstance(search.get("cases"), list):
            search["cases"] = [
                _of_trial(case, f"search.cases.{index}.", change) if isinstance(case, Mapping) else case
                for index, case in enumerate(search["cases"])
            ]
        for axes in ("grid", "space"):
            if isinstance(search.get(axes), Mapping):
                given = search[axes].items()
                search[axes] = {key: _of_axis(f"search.{axes}.", key, values, change) for key, values in given}
    return result


def _of_axis(prefix: str, key: str, values: Any, change: Change) -> Any:
    if not isinstance(values, list):
        return values
    for section, name in KEYS:
        if key == f"{section}.{name}":
            return [change(prefix + key, one) if isinstance(one, str) else one for one in values]
        if key == section:
            values = [_of_trial({key: one}, prefix, change)[key] for one in values]
    return values


def _of_trial(data: Mapping[str, Any], prefix: str, change: Change) -> dict[str, Any]:
    result = dict(data)
    for section, name in KEYS:
        below = result.get(section)
        if isinstance(below, Mapping) and isinstance(below.get(name), str):
            result[section] = {**below, name: change(f"{prefix}{section}.{name}", below[name])}
    return result
