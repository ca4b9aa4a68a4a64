"""A registry: the classes of one axis by name. Adding one takes a new file and one line in the package's `__init__`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from operator import or_
from typing import Annotated, Any, Protocol, TypeVar

from pydantic import Field

from suite.config.errors import SpecError
from suite.config.settings import nearest
from tasks.plain_text import cut


class Registered(Protocol):
    """A registered class: it has a docstring and `Settings`, whose `name` is a literal with a default."""

    Settings: type[Any]


E = TypeVar("E", bound=type[Registered])


class Registry(Mapping[str, E]):
    """Classes by the name in their settings, in the order of registration.

    Args:
        axis: singular noun for messages, e.g. `optimizer`.
    """

    def __init__(self, axis: str, entries: Iterable[E]) -> None:
        self.axis = axis
        self._entries = {entry.Settings.model_fields["name"].default: entry for entry in entries}

    def __getitem__(self, name: str) -> E:
        try:
            return self._entries[name]
        except KeyError:
            known = ", ".join(self._entries)
            hint = nearest(name, self._entries)
            raise SpecError(f"{self.axis}: unknown: {cut(name)}.{hint} (allowed: {known})") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def settings(self) -> Any:
        """Type of a settings field that holds any entry of this axis; `name` is the discriminator."""
        union = reduce(or_, (entry.Settings for entry in self._entries.values()))
        return Annotated[union, Field(discriminator="name")]

    def summary(self, name: str) -> str:
        """First line of the entry's docstring."""
        return (self[name].__doc__ or "").strip().splitlines()[0]
