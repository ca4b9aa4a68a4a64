"""Attacks: changes to a checkpoint or to its prompts that try to recover what was forgotten."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from suite.attacks.base import Attack, AttackContext, AttackSettings, PromptEdit, Subject, WeightEdit
from suite.attacks.finetuning.benign import Benign
from suite.attacks.finetuning.relearning import Relearning
from suite.attacks.finetuning.task_vector import NegatedForgetting
from suite.attacks.none import NoAttack
from suite.attacks.prompts.few_shot import FewShot
from suite.attacks.prompts.frame import Frame
from suite.attacks.prompts.gcg import GreedyCoordinateGradient
from suite.attacks.prompts.multi_turn import MultiTurn
from suite.attacks.prompts.multiple_choice import MultipleChoice
from suite.attacks.prompts.paraphrase import Paraphrase
from suite.attacks.prompts.prefill import Prefill
from suite.attacks.prompts.sample import BestOfSeveral
from suite.attacks.weights.awq import AWQ
from suite.attacks.weights.bitsandbytes_formats import FP4, NF4, Int8
from suite.attacks.weights.gptq import GPTQ
from suite.attacks.weights.logit_lens import LogitLens
from suite.attacks.weights.merging import Merge
from suite.attacks.weights.pruning import Pruning
from suite.attacks.weights.quantization import RoundToNearest
from suite.attacks.weights.refusal_direction import RefusalDirection
from suite.attacks.weights.weight_noise import WeightNoise
from suite.config.errors import SpecError
from suite.config.registry import Registry
from suite.config.settings import parse
from tasks.plain_text import shown

__all__ = [
    "ATTACKS",
    "Attack",
    "AttackContext",
    "AttackSettings",
    "PromptEdit",
    "Subject",
    "WeightEdit",
    "attack",
    "weights",
]

ATTACKS: Registry[type[Attack[Any]]] = Registry(
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
    Attack,
)


def attack(settings: Mapping[str, Any]) -> Attack[Any]:
    """The attack that these settings describe.

    Raises:
        SpecError: unknown attack or setting.
    """
    name = settings.get("name")
    if not isinstance(name, str):
        what = "missing" if name is None else f"text is expected, not {shown(name)}"
        raise SpecError(f"attacks: name: {what} (allowed: {', '.join(ATTACKS)})")
    kind = ATTACKS[name]
    return kind(parse(kind.Settings, settings, f"attacks.{name}."))
