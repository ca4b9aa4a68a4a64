"""Builds official attack sets: attacks that are the same on both splits, and attacks with a seed per split.

A search must not see the attack that is reported, so the texts that are relearned differ between dev and test.
"""

from __future__ import annotations

from typing import Any

from tasks.task import AttackSet, AttackSettings, Split

NONE: AttackSettings = {"name": "none"}
"""In every set, so that the unattacked model is measured like the attacked ones."""

FOUR_BITS: tuple[AttackSettings, ...] = (
    {"name": "rtn", "bits": 4},
    {"name": "rtn", "bits": 4, "per": "group"},
    {"name": "nf4"},
)
"""The published meanings of '4-bit': a scale per output, a scale per 128 inputs, and QLoRA's format."""


def attack_set(*drawn: AttackSettings, fixed: tuple[AttackSettings, ...] = ()) -> AttackSet:
    """A set of `none`, the `fixed` attacks, and the `drawn` ones with the split's seed: 1 on dev, 2 on test."""
    return {
        split: (NONE, *fixed, *({**attack, "seed": seed} for attack in drawn))
        for seed, split in enumerate(Split, start=1)
    }


def rounding_and_relearning(**relearn: Any) -> AttackSet:
    """Rounding to 4 bits per channel, and relearning with these settings."""
    return attack_set({"name": "relearn", **relearn}, fixed=FOUR_BITS[:1])
