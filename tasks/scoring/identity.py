"""Does the model answer exactly as the target does? A high share means that unlearning has not touched the answers."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.scoring.estimate import Estimate, mean
from tasks.scoring.tables import Table, beside, lacking
from tasks.task import Sample


def identical_outputs(tables: Sequence[Table], target: Sequence[Table]) -> Estimate:
    """Share of the items whose generated text, or all of whose log-probabilities, are those of the target."""
    pairs = beside(tables[0], target[0], "target")
    return mean([float(_output(model) == _output(anchor)) for model, anchor in pairs])


def _output(sample: Sample) -> object:
    for output in (sample.generated, sample.token_logprobs, sample.choice_logprobs):
        if output is not None:
            return output
    raise lacking(sample, "identical_outputs")
