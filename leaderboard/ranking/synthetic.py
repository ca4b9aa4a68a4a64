"""Two models that do not exist: one refuses everything, one always says the same.

Their answers follow from the questions alone and are the same under every attack, so what a metric gives for them is
computed once and lies in the table `items`, under ids of evaluations that never ran.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from leaderboard.board.items import Key, item_row
from tasks.task import Sample

UNLIKELY = -30.0
"""Log-probability of a token that a synthetic model would not say, in nats."""
REFUSAL = "I'm sorry, but I can't help with that."
CONSTANT = "Yes."


def refusal(sample: Sample) -> Sample:
    """No token of the answer is likely, and no choice is likelier than another."""
    return _answered(sample, REFUSAL, lambda choices: (UNLIKELY,) * choices)


def constant(sample: Sample) -> Sample:
    """The same text for every question, and of several choices the first."""
    return _answered(sample, CONSTANT, lambda choices: (0.0, *(UNLIKELY,) * (choices - 1)))


SYNTHETIC: Mapping[str, Callable[[Sample], Sample]] = {"refuses everything": refusal, "always says the same": constant}
"""By name, how a model answers where another one answered."""


def synthetic_key(name: str, key: Key) -> Key:
    """The row of items of a synthetic model that was asked what another model's row is about.

    Args:
        key: the row of a model without an attack. The new id follows from its id and from what the model says.
    """
    made_of = json.dumps([name, REFUSAL, CONSTANT, UNLIKELY, key.samples])
    return key._replace(samples=hashlib.sha256(made_of.encode()).hexdigest())


def synthetic_rows(key: Key, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """The rows of the table `items` of the synthetic models; none for a metric that has no number for their answers.

    Args:
        key, samples: of a model without an attack.
    """
    rows = (item_row(synthetic_key(name, key), map(answered, samples)) for name, answered in SYNTHETIC.items())
    return [row for row in rows if row is not None]


def _answered(sample: Sample, text: str, choose: Callable[[int], tuple[float, ...]]) -> Sample:
    return replace(
        sample,
        generated=None if sample.generated is None else text,
        sampled=None if sample.sampled is None else (text,) * len(sample.sampled),
        token_logprobs=None if sample.token_logprobs is None else (UNLIKELY,) * len(sample.token_logprobs),
        token_correct=None if sample.token_correct is None else (False,) * len(sample.token_correct),
        choice_logprobs=None if sample.choice_logprobs is None else choose(len(sample.choice_logprobs)),
    )
