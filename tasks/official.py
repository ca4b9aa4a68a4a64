"""The shape of official attack sets: what does not change from split to split, and what is drawn anew for each.

A search must not see the attack that is reported, so texts that are relearned differ between dev and test.
"""

from __future__ import annotations

from typing import Any

from tasks.task import AttackSet, AttackSettings, Split

NONE: AttackSettings = {"name": "none"}
"""In every set, so that a score says what it survived, no attack included."""

FOUR_BITS: tuple[AttackSettings, ...] = (
    {"name": "rtn", "bits": 4},
    {"name": "rtn", "bits": 4, "per": "group"},
    {"name": "nf4"},
)
"""What '4-bit' has meant in print: a scale per output or per 128 inputs, and what QLoRA stores."""


def attack_set(*drawn: AttackSettings, fixed: tuple[AttackSettings, ...] = ()) -> AttackSet:
    """The set with `none`, the `fixed` attacks, and the `drawn` ones with the split's seed: 1 on dev, 2 on test."""
    return {
        split: (NONE, *fixed, *({**attack, "seed": seed} for attack in drawn))
        for seed, split in enumerate(Split, start=1)
    }


def rounding_and_relearning(**relearn: Any) -> AttackSet:
    """Rounding to 4 bits per channel, and relearning with these settings."""
    return attack_set({"name": "relearn", **relearn}, fixed=FOUR_BITS[:1])
