"""What probes ask of a model, each thing once, and what becomes of the answers.

An engine computes scores of texts, gradient norms and continuations of prompts; here stands which, and how they are
put together into samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from suite.engines.sampling import Draw
from suite.engines.scores import Score, ScoreRequest
from suite.engines.transformers.decoding import GenerationRequest
from suite.models.encoding import Encoded, Encoder
from tasks.task import Item, Need, Probe, ProbeKind, Sample, Style

REMEMBERED = 4
"""Sets of probes that stay tokenized: both splits, and those of an attack on each."""

_Asking = tuple[tuple[int, ...], Draw | None]
"""A prompt, and how what follows is drawn."""


class Questions:
    """The questions of some probes.

    Attributes:
        asked: texts to score.
        differentiated: texts whose gradient norm is wanted.
        requests: prompts to continue, one that is to have several answers as often as that.
    """

    def __init__(self, encoder: Encoder, probes: Sequence[Probe]) -> None:
        self.encoder, self.probes = encoder, probes
        self._texts: dict[str, list[tuple[Encoded, ...]]] = {}
        self._askings: dict[str, list[list[_Asking]]] = {}
        needs: dict[Encoded, set[Need]] = {}
        choices: set[Encoded] = set()
        askers: dict[_Asking, list[Probe]] = {}
        for probe in probes:
            if probe.kind is ProbeKind.GENERATE:
                askings = self._askings[probe.name] = [_askings(probe, encoder.prompt(item)) for item in probe.items]
                for asking in (asking for of_item in askings for asking in of_item):
                    askers.setdefault(asking, []).append(probe)
            else:
                texts = self._texts[probe.name] = [self._encoded(probe, item) for item in probe.items]
                for text in (text for of_item in texts for text in of_item):
                    needs.setdefault(text, set()).update(probe.needs)
                    if probe.kind is ProbeKind.CHOICE:
                        choices.add(text)
        self.asked = [ScoreRequest(text, Need.VOCABULARY in needed, text in choices) for text, needed in needs.items()]
        self.differentiated = [text for text, n in needs.items() if Need.GRADIENT_NORM in n and text.answer]
        stop = {probe.stop: encoder.stop_ids(probe.stop) for of in askers.values() for probe in of}
        self.requests = [
            GenerationRequest(
                prompt,
                max(probe.max_new_tokens for probe in of),
                _ended(encoder, of),
                draw,
                tuple(sorted(frozenset.intersection(*(stop[probe.stop] for probe in of)))),
            )
            for (prompt, draw), of in askers.items()
        ]

    def samples(
        self, scores: Sequence[Score], norms: Sequence[float], continuations: Sequence[Sequence[int]]
    ) -> dict[str, tuple[Sample, ...]]:
        """Samples by probe, from the answers to `asked`, `differentiated` and `requests`, each in its order."""
        of_text = dict(zip((a.text for a in self.asked), scores, strict=True))
        of_gradient = dict(zip(self.differentiated, norms, strict=True))
        of_asking = dict(zip(((r.prompt, r.draw) for r in self.requests), continuations, strict=True))

        def sample(probe: Probe, place: int, item: Item) -> Sample:
            if probe.kind is ProbeKind.GENERATE:
                return self._generated(probe, item, [of_asking[a] for a in self._askings[probe.name][place]])
            texts = self._texts[probe.name][place]
            if probe.kind is ProbeKind.CHOICE:
                return _choice(item, [of_text[text] for text in texts])
            return _logprob(probe, item, of_text[texts[0]], of_gradient.get(texts[0]))

        return {p.name: tuple(sample(p, place, item) for place, item in enumerate(p.items)) for p in self.probes}

    @property
    def longest(self) -> int:
        """Tokens of the longest text that the model comes to see, those included that it is to generate."""
        texts = (len(asked.text.ids) for asked in self.asked)
        return max((*texts, *(request.longest for request in self.requests)), default=0)

    def _encoded(self, probe: Probe, item: Item) -> tuple[Encoded, ...]:
        answers = item.answers if probe.kind is ProbeKind.CHOICE else (item.reference,)
        texts = (self.encoder.answer(item, answer) for answer in answers)
        if probe.max_tokens and item.style is Style.TEXT:
            return tuple(text.cut(probe.max_tokens) for text in texts)
        return tuple(texts)

    def _generated(self, probe: Probe, item: Item, answers: Sequence[Sequence[int]]) -> Sample:
        limit = probe.max_reference_tokens
        reference = self.encoder.cut(item.reference, limit) if limit else item.reference
        texts = tuple(self.encoder.decode(new[: probe.max_new_tokens], probe.stop) for new in answers)
        return Sample(item.id, reference, generated=texts[0], sampled=texts if probe.sampling else None)


class QuestionBook:
    """Questions as ids, kept: many checkpoints are asked the same ones, which are tokenized once."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._asked: dict[tuple[tuple[str, str], ...], Questions] = {}

    def of(self, probes: Sequence[Probe]) -> Questions:
        asked = tuple((probe.name, probe.digest) for probe in probes)
        if asked not in self._asked:
            if len(self._asked) == REMEMBERED:
                self._asked.pop(next(iter(self._asked)))
            self._asked[asked] = Questions(self.encoder, probes)
        return self._asked[asked]


def _askings(probe: Probe, prompt: tuple[int, ...]) -> list[_Asking]:
    """All that is asked of a model for one item to generate from."""
    sampling = probe.sampling
    return [(prompt, Draw.of(sampling, prompt, n)) for n in range(sampling.draws)] if sampling else [(prompt, None)]


def _logprob(probe: Probe, item: Item, score: Score, norm: float | None) -> Sample:
    vocabulary = Need.VOCABULARY in probe.needs
    scalars = (("gradient_norm", norm),) if Need.GRADIENT_NORM in probe.needs and norm is not None else ()
    return Sample(
        item.id,
        item.reference,
        token_logprobs=score.logprobs,
        token_correct=score.right,
        vocab_means=score.means if vocabulary else None,
        vocab_variances=score.variances if vocabulary else None,
        scalars=scalars,
    )


def _choice(item: Item, scores: Sequence[Score]) -> Sample:
    return Sample(
        item.id,
        item.reference,
        choice_logprobs=tuple(sum(score.logprobs) for score in scores),
        choice_lengths=tuple(len(score.logprobs) for score in scores),
        correct=item.correct,
    )


def _ended(encoder: Encoder, probes: Sequence[Probe]) -> Callable[[Sequence[int]], bool]:
    """Whether a continuation says all that these probes want of it."""

    def ended(new: Sequence[int]) -> bool:
        return all(len(new) >= probe.max_new_tokens or encoder.stops(new, probe.stop) for probe in probes)

    return ended
