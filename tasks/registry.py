"""The tasks by name: a fixed list, and families whose entries are created on lookup.

`rwku/Aristotle` and `custom/letters` belong to open families: their members are not known before the data is read, so
any well-formed name is accepted, and one without data is refused when the task is built.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tasks.files import nearest
from tasks.plugins import OpenRegistry, left_out
from tasks.task import TaskEntry

MEMBER = re.compile(r"\w[\w .,'&()-]*")
"""Allowed names of members: never a path."""
LONGEST = 100
"""Characters of a name that are compared with known names."""


@dataclass(frozen=True, slots=True)
class Family:
    """Tasks that differ only in their subject.

    Attributes:
        name: the part of the task name before the slash.
        member: what the part after the slash means, for listings: `subject`.
        entry: makes the registry entry of one member; reads no data.
    """

    name: str
    member: str
    summary: str
    entry: Callable[[str], TaskEntry]
    members: Callable[[], Sequence[str]] = tuple
    """Members whose data is at hand, for messages."""

    @property
    def title(self) -> str:
        return f"{self.name}/<{self.member}>"


class TaskRegistry(OpenRegistry[TaskEntry]):
    """Entries by name. Iterates over the listed ones; members of families are found by `[]`, `get` and `in` as well."""

    def __init__(self, entries: Iterable[TaskEntry], families: Iterable[Family]) -> None:
        super().__init__("task", entries, lambda entry: entry.name, "regrade.tasks", _lacking)
        self.families = {family.name: family for family in families}

    @property
    def titles(self) -> list[str]:
        """The listed entries and the families, for messages."""
        return [*self, *(family.title for family in self.families.values())]

    def nearest(self, name: str) -> str:
        """` Did you mean custom/islands?`, or an empty text when no task is similar.

        A name is similar if a part of it is: whoever writes `locuslab/TOFU` means `tofu/...`, `islands` a folder.
        """
        if problem := left_out(name):
            return problem
        known = [*self, *(f"{family.name}/{one}" for family in self.families.values() for one in family.members())]
        if close := nearest(name.lower()[:LONGEST], known):
            return close
        for part in reversed(name.lower()[:LONGEST].split("/")):
            ends = [one for one in known if part and part in one.lower().split("/")]
            if ends or (close := nearest(part, known)):
                return f" Did you mean {ends[0]}?" if ends else close
        return ""

    def __getitem__(self, name: str) -> TaskEntry:
        family, slash, member = name.partition("/")
        if slash and family in self.families:
            if len(member) > LONGEST or not MEMBER.fullmatch(member):
                raise KeyError(name)
            return self.families[family].entry(member)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None


def _lacking(found: object) -> str | None:
    return None if isinstance(found, TaskEntry) else "is no tasks.TaskEntry"
