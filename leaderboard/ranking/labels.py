"""Short names for entries: the optimizer, the objective, and then only what tells entries apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from leaderboard.ranking.specs import settings_of

MOST_SETTINGS = 3
"""Most settings in a label; where more differ nobody would read them, and the entry's id is used instead."""

LONGEST_SETTING = 40
"""Characters of a setting that a label shows."""

_COLUMNS = {"zo_samples": "q={}", "zo_ratio": "zo {:.0%}", "steps": "{} steps"}

Trial = Mapping[str, Any]


def labels(trials: Iterable[Trial]) -> dict[str, str]:
    """A label per entry, from one row of the table `trials` for each: `hybrid · npo`.

    Entries that share optimizer, objective and smoothing also get the settings in which they differ: those that have
    a column, then those of the rest of the spec, then the first 8 characters of the entry's id.
    """
    rows = {trial["entry"]: trial for trial in trials}
    named = {entry: _base(trial) for entry, trial in rows.items()}
    for settings in (_columns, _spec, _id):
        for entries in _same(named):
            settings_by_entry = {entry: settings(rows[entry]) for entry in entries}
            names = dict.fromkeys(name for values in settings_by_entry.values() for name in values)
            differ = [name for name in names if len({values.get(name) for values in settings_by_entry.values()}) > 1]
            if len(differ) <= MOST_SETTINGS:
                for entry in entries:
                    words = [settings_by_entry[entry][name] for name in differ if settings_by_entry[entry].get(name)]
                    named[entry] = " · ".join([named[entry], *words])
    return named


def _same(named: Mapping[str, str]) -> Iterator[list[str]]:
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for entry, label in sorted(named.items()):
        groups[label].append(entry)
    return (entries for entries in groups.values() if len(entries) > 1)


def _base(trial: Trial) -> str:
    smoothing = trial["smoothing"] if trial["smoothing"] != "none" else None
    return " · ".join(word for word in (trial["optimizer"], trial["objective"], smoothing) if word) or "unnamed"


def _columns(trial: Trial) -> dict[str, str]:
    return {name: "" if trial[name] is None else form.format(trial[name]) for name, form in _COLUMNS.items()}


def _spec(trial: Trial) -> dict[str, str]:
    settings = {path: value for path, value in settings_of(trial["spec"]).items() if path != "seed"}
    return {path: f"{path.rpartition('.')[2]}={value}"[:LONGEST_SETTING] for path, value in settings.items()}


def _id(trial: Trial) -> dict[str, str]:
    return {"entry": trial["entry"][:8]}
