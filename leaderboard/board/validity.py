"""Which rows are read: a condition per column, most of them derived from the schema.

Anybody may put a file on a shared board, and a row that says nothing, or nothing that can be true, must not keep the
others from being shown. Each rule is an SQL condition of a wrong row with what it says, so that DuckDB evaluates all of
them while it reads, and whoever ranks the rows finds what the schema promises.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import pyarrow as pa

from leaderboard.board import schema
from leaderboard.board.schema import Role, Status

LONGEST_NAME = 1 << 16
"""Bytes of a text: names have tens of characters, and hundreds where an attack has many settings."""
LONGEST_TEXT = 1 << 20
"""Bytes of a spec or a reason: a spec has thousands."""
LARGEST = 1 << 53
"""Largest count, step, seed or version: a JSON reader has no larger integer exactly. None is negative."""
LARGEST_NUMBER = 1e100
"""Largest chance level: it is a share, or a number of choices."""
MOST_ITEMS = 20_000
"""Most items of one probe: MMLU, the largest, has 14,042. Drawing these again takes 2 GiB."""
MOST_STEPS = 1_000_000
"""Most steps of a run."""
LONGEST_IDS = 4 << 20
"""Bytes of the ids of one probe's items: they have tens of bytes each."""
LONGEST_RUN = 1e12
"""Seconds of unlearning: thirty thousand years."""

_LONG = ("spec", "reason", "search")
_NEEDED = {"trials": ("trial", "entry", "task", "status"), "measurements": ("task", "status")}
"""Columns without which a row says nothing, beside those of the key."""
_OF_A_TRIAL = ("task_version", "anchors", "anchor_ids")
"""What every trial has that did not fail. Rows about models that were made elsewhere name no model, and have none."""
_ALLOWED: dict[str, dict[str, tuple[str, ...]]] = {
    "trials": {"status": tuple(status for status in Status if status is not Status.NULL)},
    "measurements": {
        "status": (Status.OK, Status.NULL, Status.FAILED),
        "split": ("dev", "test", "all"),
        "direction": ("up", "down"),
        "headline": ("knowledge", "utility"),
    },
}


class Rule(NamedTuple):
    """Rows of which the condition holds are left out."""

    condition: str
    reason: str


@cache
def rules(table: str) -> tuple[Rule, ...]:
    """What makes a row of a table wrong. Of samples only keys are checked: scoring checks their content."""
    further = {"trials": _trials, "measurements": _measurements, "items": _items, "steps": _steps}
    return tuple([*_of_columns(table), *further.get(table, tuple)()])


def first_broken(table: str) -> str:
    """An SQL expression: the number of the first rule that a row breaks, null for a sound row."""
    # Each by itself: a CASE of several would copy the texts that its later conditions are about.
    cases = (f"CASE WHEN {rule.condition} THEN {number} END" for number, rule in enumerate(rules(table)))
    return f"least({', '.join(cases)})"


def _of_columns(table: str) -> Iterator[Rule]:
    keys = schema.columns(table, Role.KEY)
    needed = (*keys, *_NEEDED.get(table, ()))
    for field in schema.TABLES[table]:
        name = field.name
        if table not in _NEEDED and name not in keys:
            continue
        if name in needed:
            yield Rule(f"{name} IS NULL", f"its {name} is missing")
        if field.type == pa.string():
            if name in needed:
                yield Rule(f"{name} = ''", f"its {name} is empty")
            longest = LONGEST_TEXT if name in _LONG else LONGEST_NAME
            yield Rule(f"strlen({name}) > {longest}", f"its {name} has more than {longest:,} bytes")
        elif field.type == pa.int64():
            yield Rule(f"{name} NOT BETWEEN 0 AND {LARGEST}", f"its {name} is not between 0 and {LARGEST:,}")
    for name, allowed in _ALLOWED.get(table, {}).items():
        values = ", ".join(f"'{value}'" for value in allowed)
        yield Rule(f"{name} NOT IN ({values})", f"its {name} is none of {', '.join(allowed)}")


def _trials() -> Iterator[Rule]:
    yield Rule("seed IS NULL AND model IS NOT NULL", "its seed is missing")
    for name in _OF_A_TRIAL:
        condition = f"{name} IS NULL AND model IS NOT NULL AND status <> '{Status.FAILED}'"
        yield Rule(condition, f"its {name} is missing, and it did not fail")
    yield _pair()
    yield Rule("NOT (zo_ratio BETWEEN 0 AND 1)", "its zo_ratio is not between 0 and 1")
    yield Rule(f"NOT (unlearn_seconds BETWEEN 0 AND {LONGEST_RUN})", "its unlearn_seconds are no time that can be")


def _measurements() -> Iterator[Rule]:
    yield _pair()
    yield Rule("value IS NULL AND status = 'ok'", "its value is missing, and its status is ok")
    # Other numbers may be infinite, such as a loss on the way between two models; nothing is computed from them.
    yield Rule("NOT isfinite(value) AND headline IS NOT NULL", "its value is not finite")
    yield Rule("NOT isfinite(stderr) OR stderr < 0", "its stderr is not a finite number from 0")
    yield Rule(f"NOT (abs(chance) <= {LARGEST_NUMBER})", "its chance is no number that can be")


def _items() -> Iterator[Rule]:
    yield Rule("item IS NULL OR len(item) = 0 OR list_count(item) < len(item)", "an item's id is missing")
    yield Rule("len(item) IS DISTINCT FROM len(value)", "it has not one value for each item")
    yield Rule(f"len(item) > {MOST_ITEMS}", f"it has more than {MOST_ITEMS:,} items")
    length = "list_sum(list_transform(item, lambda x: strlen(x)))"
    yield Rule(f"{length} > {LONGEST_IDS}", f"the ids of its items have more than {LONGEST_IDS:,} bytes")
    # Telling items apart takes memory, so only as many as there may be.
    yield Rule(f"CASE WHEN len(item) <= {MOST_ITEMS} THEN list_unique(item) < len(item) END", "an item is there twice")
    ends = f"list_min(value) >= -{LARGEST_NUMBER} AND list_max(value) <= {LARGEST_NUMBER}"  # NaN is the largest
    yield Rule(f"list_count(value) < len(value) OR NOT ({ends})", "a value is no number that can be")


def _steps() -> Iterator[Rule]:
    yield Rule(f"step IS NULL OR len(step) > {MOST_STEPS}", f"it has no steps, or more than {MOST_STEPS:,}")
    yield Rule("list_count(step) < len(step) OR list_min(step) < 1", "its steps are not numbers from 1")
    for field in schema.STEPS:
        if pa.types.is_list(field.type) and field.name != "step":
            missing = "FALSE" if schema.role(field) is Role.OBSERVED else f"{field.name} IS NULL"
            yield Rule(f"{missing} OR len({field.name}) <> len(step)", f"it has not one {field.name} for each step")


def _pair() -> Rule:
    return Rule("anchor_ids NOT LIKE '_%:_%'", "its anchor_ids are not two digests with ':' between them")
