"""Optimised prompts: a text before or after a question, optimised until the model gives the answer.

The search knows the answer, so the text may simply spell it out. What the same budget makes even the retrained model
say does not count as recovery: recovery is measured relative to it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import model_validator

from suite.attacks.base import Access, Attack, AttackContext, AttackSettings, Subject
from suite.attacks.prompts.gcg_places import Question, placed, printable, read_back, start
from suite.attacks.texts import Texts, texts_of
from suite.config.errors import UnsuitableError
from suite.config.numbers import Count, Seed, Whole
from suite.models.checkpoints import context_of
from suite.models.lengths import check_lengths
from tasks.task import Example, Item, Probe, Split, Subset, Task, examples_digest

ALL = ""
"""Key of a text for all items: no item's id is empty."""


class GreedyCoordinateGradient(Attack["GreedyCoordinateGradient.Settings"]):
    """A text per question, or one for all, that greedy coordinate gradients (GCG) optimise until the model answers.

    The text is separated from the question by a new line: a space would become a part of its first token. Texts that
    would be tokenized differently from how they were optimised are skipped, and so is everything but printable ASCII.
    """

    # The attack only changes prompts, but computing gradients takes access to the model.
    access = Access.WEIGHTS
    source = "Zou et al. 2023, arXiv 2307.15043, Algorithms 1 and 2"
    version = 2
    example: ClassVar[Mapping[str, Any]] = {
        "steps": 1,
        "tokens": 2,
        "candidates": 4,
        "scope": "universal",
        "samples": 2,
    }

    class Settings(AttackSettings):
        """steps: swaps of one token. tokens: length of the text.

        candidates: swaps tried per step. top_k: tokens per position that they are drawn from.
        scope: `each` optimises a text for each forget question of the knowledge headlines and puts it after the
        question (before running text); other forget probes with the same item get the same text. `universal` puts one
        text before every prompt, optimised on all the drawn questions at once, not one after another as in Algorithm 2.
        samples, texts: number and source of the questions for a universal text. seed: of all draws.
        """

        name: Literal["gcg"] = "gcg"
        steps: Whole
        tokens: Whole = 20
        candidates: Count = 512
        top_k: Count = 256
        scope: Literal["each", "universal"] = "each"
        samples: Count = 25
        texts: Literal["unasked", "forget", "questions"] = "unasked"
        seed: Seed = 0

        @model_validator(mode="after")
        def _its_own(self) -> Self:
            if self.scope == "each" and not {"samples", "texts"}.isdisjoint(self.changed()):
                raise ValueError("samples and texts are of scope=universal; scope=each optimises on the probe itself")
            return self

    @property
    def changes_nothing(self) -> bool:
        return not (self.settings.steps and self.settings.tokens)

    def check(self, task: Task, split: Split) -> None:
        if self.settings.scope == "universal":
            self._pool(task, split)
        elif not _knowledge_items(task, task.probes_of(split)):
            raise UnsuitableError(f"attacks: gcg: {task.name} asks no forget question on {split}. Use scope=universal")

    def reads(self, probes: tuple[Probe, ...], context: AttackContext) -> dict[str, Any]:
        if self.settings.scope == "each":
            return {"headlines": sorted({headline.probe for headline in context.task.knowledge})}
        return {"pool": examples_digest(self._pool(context.task, probes[0].split))}

    def apply(self, subject: Subject, context: AttackContext) -> Iterator[tuple[int, Subject]]:
        from suite.attacks.prompts.gcg_search import search  # here, so that naming an attack needs no transformers

        s = self.settings
        if self.changes_nothing:
            yield 0, subject
            return
        groups = self._questions(subject, context)
        starts = {key: start(s.tokens, questions) for key, questions in groups.items()}
        model = subject.checkpoint.model(context.device)
        limit = context_of(subject.checkpoint.architecture)
        longer = self._with_texts(subject, {key: groups[key][0].text(ids) for key, ids in starts.items()})
        check_lengths(replace(context.task, forget={}, retain=()), context.encoder, limit, longer)
        allowed = printable(context.encoder, len(model.get_input_embeddings().get_parameter("weight")))
        texts = {}
        for key, questions in groups.items():
            rng = random.Random(f"{context.seed}:{s.seed}:{key}")
            best = search(
                model,
                [question.prompt for question in questions],
                starts[key],
                steps=s.steps,
                candidates=s.candidates,
                top_k=s.top_k,
                allowed=allowed,
                survives=partial(read_back, questions),
                generator=torch.Generator().manual_seed(rng.randrange(2**31)),
            )
            texts[key] = questions[0].text(best.ids)
        yield 0, Subject(subject.checkpoint, self._with_texts(subject, texts))

    def _questions(self, subject: Subject, context: AttackContext) -> dict[str, list[Question]]:
        """The questions that each text is optimised on, by the id of the text's item; `ALL` for a universal text."""
        s, encoder = self.settings, context.encoder
        if s.scope == "each":
            items_by_id = _knowledge_items(context.task, subject.probes)
            return {id_: [Question.of(item, encoder, probe)] for id_, (probe, item) in items_by_id.items()}
        pool = self._pool(context.task, subject.split)
        examples = random.Random(f"{context.seed}:{s.seed}").sample(pool, s.samples)
        items = [Item(example.id, example.prompt, (example.answer,), style=example.style) for example in examples]
        return {ALL: [Question.of(item, encoder, before=True) for item in items]}

    def _with_texts(self, subject: Subject, texts: Mapping[str, str]) -> tuple[Probe, ...]:
        """The probes with the optimised texts added to their items."""
        universal = self.settings.scope == "universal"

        def with_text(item: Item) -> Item:
            text = texts.get(ALL if universal else item.id)
            return placed(item, text, before=universal) if text is not None and item.prompt else item

        return tuple(
            replace(probe, items=tuple(map(with_text, probe.items)))
            if universal or probe.subset is Subset.FORGET
            else probe
            for probe in subject.probes
        )

    def _pool(self, task: Task, split: Split) -> list[Example]:
        """Questions that a universal text may be optimised on."""
        s = self.settings
        pool = [e for e in texts_of(Texts(s.texts), task, split) if e.prompt and e.answer]
        if s.samples > len(pool):
            raise UnsuitableError(
                f"attacks: gcg: samples={s.samples}: {task.name} has only {len(pool)} {s.texts} questions on {split}. "
                "Take fewer, or other texts"
            )
        return pool


def _knowledge_items(task: Task, probes: Sequence[Probe]) -> dict[str, tuple[Probe, Item]]:
    """The forget questions of the knowledge headlines with their probes, each once, by id."""
    headlines = {headline.probe for headline in task.knowledge}
    by_id: dict[str, tuple[Probe, Item]] = {}
    for probe in probes:
        if probe.name in headlines:
            for item in probe.items:
                if item.prompt and item.reference:
                    by_id.setdefault(item.id, (probe, item))
    return by_id
