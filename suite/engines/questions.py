"""Translates probes into requests to an engine, each made once, and the engine's results into samples.

An engine computes scores of texts, gradient norms and continuations of prompts. This module says which ones some
probes need, and assembles the samples from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from suite.engines.sampling import Draw
from suite.engines.scores import Score, ScoreRequest
from suite.engines.transformers.continuation import GenerationRequest
from suite.models.encoding import Encoded, Encoder
from tasks.task import Item, Need, Probe, ProbeKind, Sample, Style

CACHED_PROBE_SETS = 4
"""Number of probe sets whose token ids are cached: both splits, and those of an attack on each."""

NORMS = (Need.GRADIENT_NORM, Need.GRADIENT_NORM_BUT_LAST)
"""Needs of gradient norms; a sample's scalars are named after them."""

_PromptDraw = tuple[tuple[int, ...], Draw | None]
"""A prompt, and how the tokens of its continuation are drawn."""


class Questions:
    """All requests that a set of probes makes to an engine, without duplicates.

    Attributes:
        score_requests: texts to score.
        gradient_texts: texts whose gradient norm is needed.
        generation_requests: prompts to continue; a prompt with several draws appears once per draw.
    """

    def __init__(self, encoder: Encoder, probes: Sequence[Probe]) -> None:
        self.encoder, self.probes = encoder, probes
        self._texts: dict[str, list[tuple[Encoded, ...]]] = {}
        self._prompt_draws: dict[str, list[list[_PromptDraw]]] = {}
        needs: dict[Encoded, set[Need]] = {}
        choices: set[Encoded] = set()
        probes_of: dict[_PromptDraw, list[Probe]] = {}
        for probe in probes:
            if probe.kind is ProbeKind.GENERATE:
                prompt_draws = self._prompt_draws[probe.name] = [
                    _prompt_draws(probe, encoder.prompt(item)) for item in probe.items
                ]
                for prompt_draw in (each for item_draws in prompt_draws for each in item_draws):
                    probes_of.setdefault(prompt_draw, []).append(probe)
            else:
                texts = self._texts[probe.name] = [self._encoded(probe, item) for item in probe.items]
                for text in (each for item_texts in texts for each in item_texts):
                    needs.setdefault(text, set()).update(probe.needs)
                    if probe.kind is ProbeKind.CHOICE:
                        choices.add(text)
        self.score_requests = [
            ScoreRequest(text, Need.VOCABULARY in needed, text in choices) for text, needed in needs.items()
        ]
        wanted = (_with_loss(text, need) for text, needed in needs.items() for need in NORMS if need in needed)
        self.gradient_texts = [text for text in dict.fromkeys(wanted) if text.answer]
        stop = {probe.stop: encoder.stop_ids(probe.stop) for requesters in probes_of.values() for probe in requesters}
        self.generation_requests = [
            GenerationRequest(
                prompt,
                max(probe.max_new_tokens for probe in requesters),
                _completion_test(encoder, requesters),
                draw,
                tuple(sorted(frozenset.intersection(*(stop[probe.stop] for probe in requesters)))),
            )
            for (prompt, draw), requesters in probes_of.items()
        ]

    def samples(
        self, scores: Sequence[Score], norms: Sequence[float], continuations: Sequence[Sequence[int] | None]
    ) -> dict[str, tuple[Sample, ...]]:
        """Samples by probe.

        Args:
            scores: results of `score_requests`, in their order.
            norms: gradient norms of `gradient_texts`.
            continuations: new tokens of `generation_requests`; None where the model says nothing.
        """
        score_of = dict(zip((request.text for request in self.score_requests), scores, strict=True))
        norm_of = dict(zip(self.gradient_texts, norms, strict=True))
        new_of = dict(zip(((r.prompt, r.draw) for r in self.generation_requests), continuations, strict=True))

        def sample(probe: Probe, place: int, item: Item) -> Sample:
            if probe.kind is ProbeKind.GENERATE:
                return self._generated(probe, item, [new_of[each] for each in self._prompt_draws[probe.name][place]])
            texts = self._texts[probe.name][place]
            if probe.kind is ProbeKind.CHOICE:
                return _choice(item, [score_of[text] for text in texts])
            found = {need: norm_of.get(_with_loss(texts[0], need)) for need in NORMS if need in probe.needs}
            return _logprob(probe, item, score_of[texts[0]], found)

        return {p.name: tuple(sample(p, place, item) for place, item in enumerate(p.items)) for p in self.probes}

    @property
    def longest(self) -> int:
        """Length of the longest text that the model processes, in tokens, generated ones included."""
        texts = (len(request.text.ids) for request in self.score_requests)
        return max((*texts, *(request.longest for request in self.generation_requests)), default=0)

    def _encoded(self, probe: Probe, item: Item) -> tuple[Encoded, ...]:
        answers = item.answers if probe.kind is ProbeKind.CHOICE else (item.reference,)
        texts = (self.encoder.answer(item, answer) for answer in answers)
        if probe.max_tokens and item.style is Style.TEXT:
            return tuple(text.cut(probe.max_tokens) for text in texts)
        return tuple(texts)

    def _generated(self, probe: Probe, item: Item, answers: Sequence[Sequence[int] | None]) -> Sample:
        limit = probe.max_reference_tokens
        reference = self.encoder.cut(item.reference, limit) if limit else item.reference
        said = [new for new in answers if new is not None]
        if len(said) < len(answers):  # the logits are not finite; what reads this sample is null
            return Sample(item.id, reference)
        texts = tuple(self.encoder.decode(new[: probe.max_new_tokens], probe.stop) for new in said)
        return Sample(item.id, reference, generated=texts[0], sampled=texts if probe.sampling else None)


class QuestionCache:
    """Caches the tokenized questions of probe sets: many checkpoints get the same ones."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._questions: dict[tuple[tuple[str, str], ...], Questions] = {}

    def of(self, probes: Sequence[Probe]) -> Questions:
        key = tuple((probe.name, probe.digest) for probe in probes)
        if key not in self._questions:
            if len(self._questions) == CACHED_PROBE_SETS:
                self._questions.pop(next(iter(self._questions)))
            self._questions[key] = Questions(self.encoder, probes)
        return self._questions[key]


def _prompt_draws(probe: Probe, prompt: tuple[int, ...]) -> list[_PromptDraw]:
    """The prompt of one item with each of its draws, or with None for a greedy continuation."""
    sampling = probe.sampling
    return [(prompt, Draw.of(sampling, prompt, n)) for n in range(sampling.draws)] if sampling else [(prompt, None)]


def _with_loss(text: Encoded, need: Need) -> Encoded:
    """The part of a text whose loss a gradient norm is of; nothing is predicted from an answer's last token."""
    return text.cut(len(text.ids) - 1) if need is Need.GRADIENT_NORM_BUT_LAST else text


def _logprob(probe: Probe, item: Item, score: Score, norms: Mapping[Need, float | None]) -> Sample:
    vocabulary = Need.VOCABULARY in probe.needs
    scalars = tuple((str(need), norm) for need, norm in norms.items() if norm is not None)
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


def _completion_test(encoder: Encoder, probes: Sequence[Probe]) -> Callable[[Sequence[int]], bool]:
    """A test of whether a continuation is complete for all of these probes."""

    def ended(new: Sequence[int]) -> bool:
        return all(len(new) >= probe.max_new_tokens or encoder.stops(new, probe.stop) for probe in probes)

    return ended
