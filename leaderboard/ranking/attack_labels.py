"""Short names for the attacks of a set: the kind, and only those settings that tell it from the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import combinations

FITS = 16
"""A label with all settings is used up to this length, in characters."""
LONGEST_SETTING = 16
"""Characters of a setting that a label shows."""
MOST_SETTINGS = 3
"""Most settings in a label; where more are needed, the label is the full name."""
NUMBER = tuple("-.0123456789")
"""First characters of a number."""
LAST = ("seed", "points")
"""Settings that say least about an attack: used only where nothing else tells two apart."""


def attack_labels(attacks: Iterable[str]) -> dict[str, str]:
    """A unique label per attack, from the names in the column `attack`.

    `rtn[bits=4]` is `rtn bits=4`. A longer one gets its kind only, or the kind and the shortest settings that tell it
    from others of the same kind: `relearn steps=20` beside `relearn steps=24`.
    """
    groups: dict[str, list[str]] = {}
    for attack in dict.fromkeys(attacks):
        groups.setdefault(attack.partition("[")[0], []).append(attack)
    labels = {
        attack: label
        for kind, same in groups.items()
        for attack, label in zip(same, _labels(kind, [_settings(attack) for attack in same]) or same, strict=True)
    }
    # A name may contain anything, even another attack's label.
    repeated = {label for label, count in Counter(labels.values()).items() if count > 1}
    return {attack: attack if label in repeated or label in labels else label for attack, label in labels.items()}


def _labels(kind: str, same: list[dict[str, str]]) -> list[str] | None:
    """Labels of attacks of one kind, from their settings; None where nothing short tells them apart."""
    keys = sorted({key for settings in same for key in settings})
    full = [_label(kind, settings, [key for key in keys if key != "seed"]) for settings in same]
    if max(map(len, full)) <= FITS and len(set(full)) == len(same):
        return full
    for count in range(MOST_SETTINGS + 1):
        # Words say more about an attack than numbers, and settings that all attacks have more than settings that are
        # missing where they are at their default.
        choices = [
            (
                [key in chosen for key in LAST],
                *(_numbers(same, chosen), _lacking(same, chosen), sum(map(len, labels)), chosen),
                labels,
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
    """Settings by name; a comma ends a setting only outside brackets and only if another setting follows."""
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
