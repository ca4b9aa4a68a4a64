"""Official attack sets of one shape: rounding, and relearning of texts that differ from split to split."""

from __future__ import annotations

from typing import Any

from tasks.task import AttackSet, Split


def rounding_and_relearning(**relearn: Any) -> AttackSet:
    """Rounding to 4 bits per channel, and relearning with these settings; `none` beside them.

    The seed says which texts are relearned: a search must not see the attack that is reported.
    """
    fixed = ({"name": "none"}, {"name": "rtn", "bits": 4})
    return {split: (*fixed, {"name": "relearn", **relearn, "seed": seed}) for seed, split in enumerate(Split, start=1)}
