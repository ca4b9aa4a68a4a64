"""What a model makes of answers that it is shown: log-probabilities and more, at each of an answer's tokens.

Two ways to the same numbers: plainly, as right-padded batches, which every architecture takes; and packed, where what
texts share is computed once (see `packing`), which needs an architecture that goes by positions and mask alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from suite.engines.transformers.packing import Row, pack
from suite.engines.transformers.shortcut import Shortcut
from suite.models.encoding import Encoded, Tokens
from suite.models.likelihood import answer_labels, answer_logits, logits_at

CHUNK = 2**22
"""Logits that are read at a time: 16 MB in fp32, so that what is made of them stays small beside them."""


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """A text to score.

    Attributes:
        vocabulary: with mean and variance of log p over the vocabulary.
        choice: it is one of several answers to a question, so that others begin alike.
    """

    text: Encoded
    vocabulary: bool = False
    choice: bool = False


@dataclass(frozen=True, slots=True)
class Score:
    """One text's numbers, one per token of its answer.

    Attributes:
        logprobs: log p of the token given those before it, in nats.
        right: whether the token is the argmax.
        means, variances: of log p over the vocabulary, in nats and nats^2, where they were asked for.
    """

    logprobs: tuple[float, ...]
    right: tuple[bool, ...]
    means: tuple[float, ...] | None = None
    variances: tuple[float, ...] | None = None


def scored(
    model: PreTrainedModel, asked: Sequence[ScoreRequest], *, row_tokens: int, batch_tokens: int, packing: Shortcut
) -> list[Score]:
    """Scores in the order of the texts, packed where the architecture takes it.

    Args:
        row_tokens: positions of a packed row.
        batch_tokens: positions of a padded batch.
        packing: what is known of the architecture.
    """
    scores = {i: Score((), ()) if not a.vocabulary else Score((), (), (), ()) for i, a in enumerate(asked)}
    answered = [i for i, a in enumerate(asked) if a.text.answer]
    if packing.sound:
        found = _packed(model, [asked[i] for i in answered], row_tokens, batch_tokens, packing)
    if not packing.sound:
        found = score_plainly(model, [asked[i] for i in answered], batch_tokens)
    return list((scores | dict(zip(answered, found, strict=True))).values())


def score_plainly(model: PreTrainedModel, asked: Sequence[ScoreRequest], batch_tokens: int) -> list[Score]:
    """Scores of texts with an answer, computed in right-padded batches of like length."""
    scores: dict[int, Score] = {}
    for batch in batches([len(a.text.ids) for a in asked], batch_tokens):
        tokens = Tokens.collate([asked[i].text for i in batch], model.device)
        _, mask = answer_labels(tokens)
        logits = answer_logits(model, tokens)[mask]
        ends = mask.sum(1).cumsum(0).tolist()
        places = [range(end - len(asked[i].text.answer), end) for i, end in zip(batch, ends, strict=True)]
        scores.update(zip(batch, _read(logits, [asked[i] for i in batch], places), strict=True))
    return [scores[i] for i in range(len(asked))]


def score_row(model: PreTrainedModel, asked: Sequence[ScoreRequest], row: Row) -> dict[int, Score]:
    """Scores of the texts of a packed row, by index."""
    predicting = {index: path[asked[index].text.start - 1 :] for index, path in row.paths}
    kept = sorted({position for path in predicting.values() for position in path})
    logits = logits_at(model, kept, **row.inputs(model.device, model.dtype))[0]
    place = {position: i for i, position in enumerate(kept)}
    places = [[place[position] for position in path] for path in predicting.values()]
    return dict(zip(predicting, _read(logits, [asked[i] for i in predicting], places), strict=True))


def batches(lengths: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Indices in batches of like length, the longest first, each within `limit` padded tokens (or a single text)."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > limit:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _packed(
    model: PreTrainedModel, asked: Sequence[ScoreRequest], row_tokens: int, batch_tokens: int, packing: Shortcut
) -> list[Score]:
    """Scores row by row; the row of branches with the longest text first, to be compared.

    An answer's last token is not fed: nothing is predicted from it.
    """
    rows = pack([a.text.ids[:-1] for a in asked], row_tokens)
    rows.sort(key=lambda row: (row.branches, max(row.depths)), reverse=True)
    scores: dict[int, Score] = {}
    for row in rows:
        try:
            found = score_row(model, asked, row)
        except Exception as error:
            packing.refused(error)
            return []
        longest = max(row.depths) + 1
        if row.branches and longest > packing.checked:
            plain = score_plainly(model, [asked[i] for i in found], batch_tokens)
            ways = ([x for score in way for x in score.logprobs] for way in (found.values(), plain))
            if not packing.compare(*ways, longest, model.dtype):
                return []
        scores |= found
    return [scores[i] for i in range(len(asked))]


def _read(logits: Tensor, asked: Sequence[ScoreRequest], places: Sequence[Sequence[int]]) -> list[Score]:
    """Scores from (positions, vocabulary) fp32 logits; `places[i]` are the positions that predict text i's labels."""
    rows = max(1, CHUNK // logits.shape[-1])
    total, best = _over_vocabulary(logits.split(rows), lambda part: (part.logsumexp(-1), part.argmax(-1)))
    at = torch.tensor([place for of_text in places for place in of_text], device=logits.device)
    labels = torch.tensor([label for a in asked for label in a.text.answer], device=logits.device)
    logprobs = (logits[at, labels] - total[at]).tolist()
    right = (best[at] == labels).tolist()
    moments: dict[int, list[float]] = {}
    if wanted := sorted({place for a, of_text in zip(asked, places, strict=True) if a.vocabulary for place in of_text}):
        parts = torch.tensor(wanted, device=logits.device).split(rows)
        found = torch.stack(_over_vocabulary((logits[part] for part in parts), _moments), 1)
        moments = dict(zip(wanted, found.tolist(), strict=True))
    scores, start = [], 0
    for a, of_text in zip(asked, places, strict=True):
        end = start + len(of_text)
        mean, variance = (tuple(moments[p][i] for p in of_text) if a.vocabulary else None for i in (0, 1))
        scores.append(Score(tuple(logprobs[start:end]), tuple(right[start:end]), mean, variance))
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
