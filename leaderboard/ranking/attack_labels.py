"""A short name for each attack of a set: what it is, and only those of its settings that tell it from the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import combinations

FITS = 16
"""Characters up to which an attack is called by all of its settings."""
LONGEST_SETTING = 16
"""Characters of a setting that a label shows."""
MOST_SETTINGS = 3
"""Settings that a label is made of; where more are needed, it is the whole name."""
NUMBER = tuple("-.0123456789")
"""What a number begins with."""
LAST = ("seed", "points")
"""Settings that say least of what an attack does: named where nothing else tells two apart."""


def attack_labels(attacks: Iterable[str]) -> dict[str, str]:
    """A label per attack, each different, from names as they stand in the rows.

    `rtn[bits=4]` is `rtn bits=4`. A longer one is called by its first word alone, or by the shortest settings that
    tell it from those with the same one: `relearn steps=20` beside `relearn steps=24`.
    """
    groups: dict[str, list[str]] = {}
    for attack in dict.fromkeys(attacks):
        groups.setdefault(attack.partition("[")[0], []).append(attack)
    found = {
        attack: label
        for kind, same in groups.items()
        for attack, label in zip(same, _labels(kind, [_settings(attack) for attack in same]) or same, strict=True)
    }
    # A name may hold anything, another attack's label too.
    twice = {label for label, count in Counter(found.values()).items() if count > 1}
    return {attack: attack if label in twice or label in found else label for attack, label in found.items()}


def _labels(kind: str, same: list[dict[str, str]]) -> list[str] | None:
    """Labels of attacks of one kind, from their settings; None where nothing short tells them apart."""
    keys = sorted({key for settings in same for key in settings})
    whole = [_label(kind, settings, [key for key in keys if key != "seed"]) for settings in same]
    if max(map(len, whole)) <= FITS and len(set(whole)) == len(same):
        return whole
    for count in range(MOST_SETTINGS + 1):
        # A word says more of what an attack does than a number, and settings that all of them have more than ones that
        # are missing where they are at their default.
        choices = [
            (
                *(key in chosen for key in LAST),
                *(_numbers(same, chosen), _lacking(same, chosen), sum(map(len, labels)), chosen, labels),
            )
            for chosen in combinations(keys, count)
            if len(set(labels := [_label(kind, settings, chosen) for settings in same])) == len(same)
        ]
        if choices:
            return min(choices)[-1]
    return None


def _numbers(same: Iterable[Mapping[str, str]], keys: Iterable[str]) -> int:
    """How many of these settings are numbers."""
    return sum(any(settings.get(key, "")[:1] in NUMBER for settings in same if key in settings) for key in keys)


def _lacking(same: Iterable[Mapping[str, str]], keys: Iterable[str]) -> int:
    return sum(key not in settings for settings in same for key in keys)


def _label(kind: str, settings: Mapping[str, str], keys: Iterable[str]) -> str:
    return " ".join([kind, *(f"{key}={settings[key]}"[:LONGEST_SETTING] for key in keys if key in settings)])


def _settings(attack: str) -> dict[str, str]:
    """Settings by name; a comma within brackets does not end one, nor one after which there is no other setting."""
    inside = attack.partition("[")[2].removesuffix("]")
    parts: list[str] = []
    depth = 0
    for piece in inside.split(","):
        if parts and (depth > 0 or "=" not in piece):
            parts[-1] += f",{piece}"
        else:
            parts.append(piece)
        depth += sum(piece.count(mark) for mark in "[({") - sum(piece.count(mark) for mark in "])}")
    pairs = (part.partition("=") for part in parts if part)
    return {key: value for key, _, value in pairs}
