"""What is done to a checkpoint, or to the way it is asked, to bring the forgotten back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from suite.attacks.awq import AWQ
from suite.attacks.base import Attack, AttackContext, Subject
from suite.attacks.benign import Benign
from suite.attacks.bitsandbytes_formats import FP4, NF4, Int8
from suite.attacks.few_shot import FewShot
from suite.attacks.frame import Frame
from suite.attacks.gcg import GreedyCoordinateGradient
from suite.attacks.gptq import GPTQ
from suite.attacks.logit_lens import LogitLens
from suite.attacks.merging import Merge
from suite.attacks.multi_turn import MultiTurn
from suite.attacks.multiple_choice import MultipleChoice
from suite.attacks.none import NoAttack
from suite.attacks.paraphrase import Paraphrase
from suite.attacks.prefill import Prefill
from suite.attacks.pruning import Pruning
from suite.attacks.quantization import RoundToNearest
from suite.attacks.refusal_direction import RefusalDirection
from suite.attacks.relearning import Relearning
from suite.attacks.sample import BestOfSeveral
from suite.attacks.task_vector import NegatedForgetting
from suite.attacks.weight_noise import WeightNoise
from suite.registry import Registry
from suite.settings import SpecError, parse

__all__ = ["ATTACKS", "Attack", "AttackContext", "Subject", "attack"]

ATTACKS: Registry[type[Attack]] = Registry(
    "attack",
    [
        NoAttack,
        RoundToNearest,
        NF4,
        FP4,
        Int8,
        GPTQ,
        AWQ,
        Pruning,
        WeightNoise,
        Relearning,
        Benign,
        NegatedForgetting,
        Merge,
        RefusalDirection,
        GreedyCoordinateGradient,
        Paraphrase,
        Frame,
        Prefill,
        FewShot,
        MultipleChoice,
        MultiTurn,
        BestOfSeveral,
        LogitLens,
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
