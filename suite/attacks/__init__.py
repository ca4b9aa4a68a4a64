"""What is done to a checkpoint, or to the way it is asked, to bring the forgotten back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from suite.attacks.base import Attack, AttackContext, Subject
from suite.attacks.none import NoAttack
from suite.attacks.quantization import RoundToNearest
from suite.attacks.relearning import Relearning
from suite.registry import Registry
from suite.settings import SpecError, parse

__all__ = ["ATTACKS", "Attack", "AttackContext", "Subject", "attack"]

ATTACKS: Registry[type[Attack]] = Registry(
    "attack",
    [
        NoAttack,
        RoundToNearest,
        Relearning,
    ],
)


def attack(settings: Mapping[str, Any]) -> Attack:
    """The attack that these settings describe.

    Raises:
        SpecError: unknown attack or setting.
    """
    if "name" not in settings:
        raise SpecError(f"attacks: name: missing (allowed: {', '.join(ATTACKS)})")
    kind = ATTACKS[settings["name"]]
    return kind(parse(kind.Settings, settings, f"attacks.{settings['name']}."))
