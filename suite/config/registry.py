"""A registry: the classes of one axis by name. Adding one takes a new file and one line in the package's `__init__`, or
a package of its own that names it (`tasks/plugins.py`)."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from functools import reduce
from operator import or_
from typing import Annotated, Any, Protocol, TypeVar, get_args

from pydantic import Field

from suite.config.errors import SpecError
from suite.config.settings import Settings, nearest
from tasks.plain_text import cut
from tasks.plugins import OpenRegistry, left_out


class Registered(Protocol):
    """A registered class: it has a docstring and `Settings`, whose `name` is a literal with a default."""

    Settings: type[Any]


E = TypeVar("E", bound=type[Registered])


class Registry(OpenRegistry[E]):
    """Classes by the name in their settings, in the order of registration.

    Args:
        axis: singular noun for messages, e.g. `optimizer`.
        base: the class of which other packages may add subclasses, in the entry-point group `regrade.optimizers`; None
            for a registry that is closed.
    """

    def __init__(self, axis: str, entries: Iterable[E], base: type[Any] | None = None) -> None:
        group = f"regrade.{axis}s" if base else None
        super().__init__(axis, entries, _name, group, lambda found: _lacking(found, base))

    def __getitem__(self, name: str) -> E:
        try:
            return super().__getitem__(name)
        except KeyError:
            known = ", ".join(self)
            hint = left_out(name) or nearest(name, self)
            raise SpecError(f"{self.noun}: unknown: {cut(name)}.{hint} (allowed: {known})") from None

    @property
    def settings(self) -> Any:
        """Type of a settings field that holds any entry of this axis; `name` is the discriminator."""
        union = reduce(or_, (entry.Settings for entry in self.values()))
        return Annotated[union, Field(discriminator="name")]

    def summary(self, name: str) -> str:
        """First line of the entry's docstring."""
        return (self[name].__doc__ or "").strip().splitlines()[0]


def _name(entry: type[Registered]) -> str:
    return str(entry.Settings.model_fields["name"].default)


def _lacking(found: object, base: type[Any] | None) -> str | None:
    """What a class lacks of what the suite reads of it: the base, a docstring, settings with a literal name, the class
    attributes that its base only announces, and what the base itself says in `unusable`."""
    if base is None or not (isinstance(found, type) and issubclass(found, base)):
        return f"is no subclass of {base.__module__}.{base.__name__}" if base else "cannot be added"
    if not (found.__doc__ or "").strip():
        return "has no docstring, whose first line `regrade ls` prints"
    kind: object = getattr(found, "Settings", None)
    if not (isinstance(kind, type) and issubclass(kind, Settings)):
        return "has no `Settings` derived from those of its axis"
    name = kind.model_fields.get("name")
    if name is None or not isinstance(name.default, str) or get_args(name.annotation) != (name.default,):
        return "has no name: write `name: Literal[...] = ...` in its `Settings`, the same text in both places"
    for above in found.__mro__:
        for attribute, annotation in inspect.get_annotations(above).items():
            if str(annotation).startswith("ClassVar") and not hasattr(found, attribute):
                return f"lacks the class attribute `{attribute}`"
    says: Any = getattr(found, "unusable", None)
    return says() if says else None
