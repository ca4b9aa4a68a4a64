"""Registries that other packages add to: a package that is installed beside Regrade names its entries in its metadata.

    [project.entry-points."regrade.optimizers"]
    normalised = "my_package.methods:Normalised"

Nothing else is looked at: a spec, a row or a file holds names only, and names nothing to import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_OPEN: list[OpenRegistry[Any]] = []
"""All registries."""


@dataclass(frozen=True, slots=True)
class Added(Generic[T]):
    """What a package adds to a registry.

    Attributes:
        noun: what it is, e.g. `optimizer`.
        package: its name and version, as in rows: `my-package 0.1`.
        entry: None where it cannot be used.
        problem: why not, one sentence.
    """

    noun: str
    name: str
    package: str
    entry: T | None
    problem: str | None = None


class OpenRegistry(Mapping[str, T]):
    """Entries by name: Regrade's own in their order, then those of other packages, which are imported on first use.

    What a package adds is left out where it cannot be imported, is no such entry, or has a name that is taken:
    `problems` says so, and nothing else is affected.

    Args:
        noun: what an entry is, for messages, e.g. `optimizer`.
        entries: Regrade's own.
        named: the name of an entry.
        group: the entry-point group that others add to; None for a registry that is closed.
        lacking: what an object lacks to be an entry, as the end of a sentence; None where it is one.

    Attributes:
        own: Regrade's own, by name.

    Raises:
        ValueError: two entries have one name.
    """

    def __init__(
        self,
        noun: str,
        entries: Iterable[T],
        named: Callable[[T], str],
        group: str | None = None,
        lacking: Callable[[object], str | None] = lambda found: None,
    ) -> None:
        self.noun, self.group = noun, group
        self._named, self._lacking = named, lacking
        self.own: dict[str, T] = {}
        for entry in entries:
            if named(entry) in self.own:
                raise ValueError(f"two {noun}s have the name {named(entry)}")
            self.own[named(entry)] = entry
        _OPEN.append(self)

    def __getitem__(self, name: str) -> T:
        return self.own[name] if name in self.own else self._all[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def package(self, name: str) -> str | None:
        """The package, with its version, that an entry comes from; None for Regrade's own."""
        return None if name in self.own else self._packages.get(name)

    @property
    def added(self) -> list[Added[T]]:
        """What other packages add, usable or not."""
        return list(self._added)

    def problems(self, name: str | None = None) -> list[str]:
        """Why entries of other packages are left out, a sentence each.

        Args:
            name: only of those that are named so.
        """
        return [one.problem for one in self._added if one.problem and name in (None, one.name)]

    @cached_property
    def _added(self) -> list[Added[T]]:
        found: list[Added[T]] = []
        for point in sorted(entry_points(group=self.group), key=_package) if self.group else ():
            taken = dict.fromkeys(self.own, "Regrade itself") | {one.name: one.package for one in found if one.entry}
            found.append(self._read(point, taken))
        return found

    @property
    def _all(self) -> dict[str, T]:
        return self.own | {one.name: one.entry for one in self._added if one.entry is not None}

    @cached_property
    def _packages(self) -> dict[str, str]:
        return {one.name: one.package for one in self._added if one.entry is not None}

    def _read(self, point: EntryPoint, taken: Mapping[str, str]) -> Added[T]:
        package = _package(point)

        def unusable(why: str) -> Added[T]:
            return Added(
                self.noun, point.name, package, None, f"{self.noun} {point.name} of {package} is left out: {why}"
            )

        try:
            entry = point.load()
        except (Exception, SystemExit) as error:
            return unusable(f"{point.value} cannot be imported ({type(error).__name__}: {error})")
        if lacks := self._lacking(entry):
            return unusable(f"{point.value} {lacks}")
        name = self._named(entry)
        if name != point.name:
            return unusable(f"its entry point must have its name, {name}")
        if name in taken:
            return unusable(f"{taken[name]} has one of this name. One of the two has to be called otherwise")
        return Added(self.noun, name, package, entry)


def left_out(name: str) -> str:
    """Why entries of this name are left out of registries, in brackets after a message; empty where none is."""
    return "".join(f" ({problem})" for registry in _OPEN for problem in registry.problems(name))


def added(group: str | None = None) -> list[Added[Any]]:
    """What packages add to the registries that are imported so far.

    Args:
        group: only to the registry of this entry-point group.
    """
    return [one for registry in _OPEN if group in (None, registry.group) for one in registry.added]


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"
