"""Teacher-forced scores: log-probabilities, and more, of given answers, at each of an answer's tokens.

There are two ways to the same numbers. The plain one computes right-padded batches and works for every architecture.
The packed one computes a prefix that texts share only once (see `packing`); it needs an architecture whose results
depend on position ids and attention mask alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from suite.engines.transformers.packing import Row, pack
from suite.engines.transformers.shortcut import Shortcut
from suite.models.encoding import Encoded, Tokens
from suite.models.layers import rope_switch
from suite.models.likelihood import answer_labels, answer_logits, logits_at

LOGITS_AT_A_TIME = 2**22
"""Logits that are processed at a time: 16 MB in fp32, so that intermediate results stay small beside all of them."""


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """A text to score.

    Attributes:
        vocabulary: whether mean and variance of log p over the vocabulary are needed too.
        choice: whether it is one of several answers to a question, so that other texts share its beginning.
    """

    text: Encoded
    vocabulary: bool = False
    choice: bool = False


@dataclass(frozen=True, slots=True)
class Score:
    """The scores of one text, one per token of its answer.

    Attributes:
        logprobs: log p of the token given those before it, in nats.
            NaN where the logits are not finite.
        right: whether the token is the argmax; None where logits are not finite, and none is.
        means, variances: of log p over the vocabulary, in nats and nats^2, where they were requested.
    """

    logprobs: tuple[float, ...]
    right: tuple[bool, ...] | None
    means: tuple[float, ...] | None = None
    variances: tuple[float, ...] | None = None

    @property
    def known(self) -> bool:
        """Whether no log-probability is NaN."""
        return not any(map(math.isnan, self.logprobs))


def scored(
    model: PreTrainedModel, requests: Sequence[ScoreRequest], *, row_tokens: int, batch_tokens: int, packing: Shortcut
) -> list[Score]:
    """Scores in the order of the requests, packed where the architecture supports it.

    Args:
        row_tokens: positions of a packed row.
        batch_tokens: positions of a padded batch.
        packing: whether the architecture is known to support packed rows.
    """
    scores = {i: Score((), ()) if not a.vocabulary else Score((), (), (), ()) for i, a in enumerate(requests)}
    with_answer = [i for i, a in enumerate(requests) if a.text.answer]
    # Where one text beyond a length changes what a model makes of shorter ones, they share no batch.
    limit = rope_switch(model) or math.inf
    together, apart = ([i for i in with_answer if (len(requests[i].text.ids) > limit) == b] for b in (False, True))
    if packing.sound:
        computed = _packed(model, [requests[i] for i in together], row_tokens, batch_tokens, packing)
    if not packing.sound:
        computed = score_plainly(model, [requests[i] for i in together], batch_tokens)
    computed += score_plainly(model, [requests[i] for i in apart], batch_tokens)
    return list((scores | dict(zip(together + apart, computed, strict=True))).values())


def score_plainly(model: PreTrainedModel, requests: Sequence[ScoreRequest], batch_tokens: int) -> list[Score]:
    """Scores of texts with an answer, computed in right-padded batches of similar length."""
    scores: dict[int, Score] = {}
    for batch in batches([len(a.text.ids) for a in requests], batch_tokens):
        tokens = Tokens.collate([requests[i].text for i in batch], model.device)
        _, mask = answer_labels(tokens)
        logits = answer_logits(model, tokens)[mask]
        ends = mask.sum(1).cumsum(0).tolist()
        places = [range(end - len(requests[i].text.answer), end) for i, end in zip(batch, ends, strict=True)]
        scores.update(zip(batch, _read(logits, [requests[i] for i in batch], places), strict=True))
    return [scores[i] for i in range(len(requests))]


def score_row(model: PreTrainedModel, requests: Sequence[ScoreRequest], row: Row) -> dict[int, Score]:
    """Scores of the texts of a packed row, by index."""
    predicting = {index: path[requests[index].text.start - 1 :] for index, path in row.paths}
    kept = sorted({position for path in predicting.values() for position in path})
    logits = logits_at(model, kept, **row.inputs(model.device, model.dtype))[0]
    place = {position: i for i, position in enumerate(kept)}
    places = [[place[position] for position in path] for path in predicting.values()]
    return dict(zip(predicting, _read(logits, [requests[i] for i in predicting], places), strict=True))


def batches(lengths: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first, each within `limit` padded tokens (or a single text)."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > limit:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _packed(
    model: PreTrainedModel, requests: Sequence[ScoreRequest], row_tokens: int, batch_tokens: int, packing: Shortcut
) -> list[Score]:
    """Scores row by row. The branching row with the longest text comes first: it is compared with the plain way.

    An answer's last token is not an input: nothing is predicted from it. One text's NaN is the whole row's, whatever
    the mask says (0 times NaN is NaN), so what has it is scored again, each text by itself.
    """
    rows = pack([a.text.ids[:-1] for a in requests], row_tokens)
    rows.sort(key=lambda row: (row.branches, max(row.depths)), reverse=True)
    scores: dict[int, Score] = {}
    for row in rows:
        try:
            row_scores = score_row(model, requests, row)
        except Exception as error:
            packing.refused(error)
            return []
        row_scores = {i: score for i, score in row_scores.items() if score.known}
        longest = max((len(requests[i].text.ids) for i in row_scores), default=0) - 1
        if row.branches and longest > packing.checked:
            plain = score_plainly(model, [requests[i] for i in row_scores], batch_tokens)
            fast, slow = ([x for score in way for x in score.logprobs] for way in (row_scores.values(), plain))
            if not packing.compare(fast, slow, longest, model.dtype):
                return []
        scores |= row_scores
    again = [i for i in range(len(requests)) if i not in scores]
    scores |= zip(again, score_plainly(model, [requests[i] for i in again], batch_tokens), strict=True)
    return [scores[i] for i in range(len(requests))]


def _read(logits: Tensor, requests: Sequence[ScoreRequest], places: Sequence[Sequence[int]]) -> list[Score]:
    """Scores from (positions, vocabulary) fp32 logits; `places[i]` are the positions that predict text i's answer."""
    rows = max(1, LOGITS_AT_A_TIME // logits.shape[-1])
    total, best = _over_vocabulary(logits.split(rows), lambda part: (part.logsumexp(-1), part.argmax(-1)))
    at = torch.tensor([place for text_places in places for place in text_places], device=logits.device)
    labels = torch.tensor([label for a in requests for label in a.text.answer], device=logits.device)
    finite = total.isfinite()  # a sum over all logits: one of them is NaN or infinite, or none is above -inf
    logprobs = (logits[at, labels] - total[at]).masked_fill(~finite[at], torch.nan).tolist()
    right, known = (best[at] == labels).tolist(), finite[at].tolist()
    moments: dict[int, list[float]] = {}
    if needed := sorted(
        {p for a, text_places in zip(requests, places, strict=True) if a.vocabulary for p in text_places}
    ):
        parts = torch.tensor(needed, device=logits.device).split(rows)
        computed = torch.stack(_over_vocabulary((logits[part] for part in parts), _moments), 1)
        moments = dict(zip(needed, computed.tolist(), strict=True))
    scores, start = [], 0
    for a, text_places in zip(requests, places, strict=True):
        end = start + len(text_places)
        mean, variance = (tuple(moments[p][i] for p in text_places) if a.vocabulary else None for i in (0, 1))
        argmax = tuple(right[start:end]) if all(known[start:end]) else None
        scores.append(Score(tuple(logprobs[start:end]), argmax, mean, variance))
        start = end
    return scores


def _over_vocabulary(parts: Iterable[Tensor], read: Callable[[Tensor], tuple[Tensor, ...]]) -> list[Tensor]:
    return [torch.cat(column) for column in zip(*map(read, parts), strict=True)]


def _moments(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of log p under p itself: mu = sum p log p, and sum p (log p - mu)^2, never below 0."""
    logp = logits.log_softmax(-1)
    p = logp.exp()
    mean = (p * logp).sum(-1)
    return mean, (p * (logp - mean.unsqueeze(-1)).square()).sum(-1)
