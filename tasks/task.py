"""What a task is: text to forget, text to keep, and the questions that tell the two apart.

Nothing here knows about models or tokenizers. An engine turns (checkpoint, probe) into `Sample`s, one per item;
`tasks.scoring` turns samples into numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any


class TaskError(ValueError):
    """A task's data is missing, or not what was published. The message says where, and what to do."""


class Subset(StrEnum):
    """Which side of the forgetting an item belongs to."""

    FORGET = "forget"
    RETAIN = "retain"
    HOLDOUT = "holdout"


class Split(StrEnum):
    """A search may look at `dev`; headlines come from `test`."""

    DEV = "dev"
    TEST = "test"


class ProbeKind(StrEnum):
    """What an engine has to do for a probe."""

    GENERATE = "generate"
    """Greedy text after the prompt."""
    LOGPROB = "logprob"
    """Teacher-forced log-probability of each token of the reference answer."""
    CHOICE = "choice"
    """Summed log-probability of each of several answers."""


class Style(StrEnum):
    """How prompt and answer are put before a model."""

    QUESTION = "question"
    """A question and its answer: the model's template (chat or plain) goes around them, end-of-text after them."""
    TEXT = "text"
    """Running text: the answer follows the prompt as it stands."""


class Need(StrEnum):
    """What a `logprob` probe asks of the model beyond the log-probability of its answers' tokens."""

    VOCABULARY = "vocabulary"
    """Mean and variance of log p over the vocabulary at each token (Min-K%++)."""
    GRADIENT_NORM = "gradient_norm"
    """Norm of the loss's gradient (a membership score): one backward pass per text."""


@dataclass(frozen=True, slots=True)
class Example:
    """A text to train on; the loss is taken on the answer's tokens alone.

    Attributes:
        where: file and row that it was read from, for messages; no part of what is taught.
    """

    id: str
    prompt: str
    answer: str
    style: Style = Style.QUESTION
    where: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its answer, said before the one that is asked."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Item:
    """One question of a probe. `answers[correct]` is the reference; the others are wrong alternatives.

    Attributes:
        where: file and row that it was read from, for messages; no part of what is asked.
        turns: what was said before, the oldest first.
        prefill: how the answer begins: given to the model, neither generated nor scored.
        rewordings: the same question in other words, for attacks that reword; no part of what is asked.
    """

    id: str
    prompt: str
    answers: tuple[str, ...]
    correct: int = 0
    style: Style = Style.QUESTION
    where: str = field(default="", compare=False)
    turns: tuple[Turn, ...] = ()
    prefill: str = ""
    rewordings: tuple[str, ...] = field(default=(), compare=False)

    @property
    def reference(self) -> str:
        return self.answers[self.correct]


@dataclass(frozen=True, slots=True)
class Sampling:
    """Several answers drawn at a temperature, in place of the greedy one; the one that knows most is scored.

    Attributes:
        draws: answers per question.
        temperature: what the logits are divided by.
        seed: of the draws.
    """

    draws: int
    temperature: float
    seed: int = 0


@dataclass(frozen=True)
class Probe:
    """One question set: what is asked, of which subset and split, in which way, and how the answers are scored.

    Attributes:
        metrics: names in `tasks.scoring.METRICS`; each must be computable from samples of this kind.
        max_new_tokens: limit of the generated answer, in tokens (`generate` only).
        stop: a generated answer ends before the first of these texts, and is stripped (`generate` only).
        max_reference_tokens: the reference is cut to so many tokens, those that the tokenizer puts around any text
            counted, and decoded again (`generate` only).
        max_tokens: running text longer than this is cut there, prompt and answer counted together (`logprob` only).
            Without it, a text that does not fit the model's context is an error.
        needs: what else is asked of the model (`logprob` only).
        sampling: several answers at a temperature instead of the greedy one (`generate` only).
    """

    name: str
    subset: Subset
    split: Split
    kind: ProbeKind
    items: tuple[Item, ...]
    metrics: tuple[str, ...]
    max_new_tokens: int = 32
    stop: tuple[str, ...] = ()
    max_reference_tokens: int | None = None
    max_tokens: int | None = None
    needs: tuple[Need, ...] = ()
    sampling: Sampling | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what an engine is asked. Metrics are left out: another metric needs no new samples."""
        asked = (self.name, self.subset, self.split, self.kind, [_plain(item) for item in self.items])
        more = {
            "stop": self.stop,
            "max_reference_tokens": self.max_reference_tokens,
            "max_tokens": self.max_tokens,
            "needs": sorted(self.needs),
            "sampling": asdict(self.sampling) if self.sampling else None,
        }
        said = {key: value for key, value in more.items() if value}
        new_tokens = self.max_new_tokens if self.kind is ProbeKind.GENERATE else 0
        return _digest([*asked, new_tokens, *([said] if said else [])])


def limited(probes: Iterable[Probe], n: int) -> tuple[Probe, ...]:
    """The probes with their first `n` items each. Fewer items are another probe: the digest changes with them."""
    return tuple(replace(probe, items=probe.items[:n]) for probe in probes)


@dataclass(frozen=True, slots=True)
class Summary:
    """Numbers about several probes of a split at once, or about a model beside an anchor. Asks the model nothing.

    Attributes:
        name: stands in the rows where a probe's name stands.
        probes: names of the probes, in the order in which the metrics take their samples.
        metrics: names in `tasks.scoring.SUMMARIES`.
    """

    name: str
    subset: Subset
    probes: tuple[str, ...]
    metrics: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """What a model did with one item. Everything that scoring needs and nothing that needs a tokenizer.

    Attributes:
        item: the item's id, unique within its probe.
        reference: the right answer's text, as scored.
        generated: greedy text (`generate`).
        sampled: texts drawn at a temperature, where a probe asks for several (`generate`); `generated` is then the
            first of them.
        token_logprobs: log p of each reference token given those before it, in nats (`logprob`).
        token_correct: whether the teacher-forced argmax is that token (`logprob`).
        choice_logprobs: log p of each answer, summed over its tokens, in nats (`choice`).
        choice_lengths: tokens of each answer (`choice`).
        correct: index of the right answer among the choices (`choice`).
        vocab_means, vocab_variances: mean and variance of log p over the vocabulary at each reference token, in
            nats and nats^2, where a probe asks for them.
        scalars: named numbers that only a model can give (a gradient norm, a reference model's loss).
    """

    item: str
    reference: str
    generated: str | None = None
    token_logprobs: tuple[float, ...] | None = None
    token_correct: tuple[bool, ...] | None = None
    choice_logprobs: tuple[float, ...] | None = None
    choice_lengths: tuple[int, ...] | None = None
    correct: int | None = None
    vocab_means: tuple[float, ...] | None = None
    vocab_variances: tuple[float, ...] | None = None
    scalars: tuple[tuple[str, float], ...] = ()
    sampled: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Headline:
    """A (probe, metric) pair that stands for a kind of memory or of ability. Higher always means more of it.

    Attributes:
        chance: value of the metric for a model that knows nothing.
    """

    probe: str
    metric: str
    chance: float = 0.0


class Zero(StrEnum):
    """What a model that has forgotten everything is taken to score."""

    RETRAINED = "retrained"
    """What a model scores that never saw the forget set."""
    CHANCE = "chance"
    """A headline's chance level. Relearning then counts what it teaches as relapse."""


@dataclass(frozen=True)
class Task:
    """A benchmark: what is forgotten, what is kept, what is asked, and which numbers are the headlines.

    Attributes:
        forget: the forget set, cut into named requests; together they are all of it. A trial may unlearn them at
            once or one after another.
        retain: text whose knowledge must stay; both anchors are trained on it.
        holdout: text of the same kind that no model has seen.
        probes: every probe, of both splits.
        knowledge: the forget headlines; a task's knowledge is the largest of them.
        utility: the retain headlines; a task's utility is the smallest of them.
        data: SHA-256 of the rows behind the task, whatever files or place they were read from.
        summaries: numbers from several probes, or beside an anchor.
        source: where the rows were read: a hub data set at its pinned revision, or a local mirror; empty where the task
            is made up here.
        block: running text is taught in blocks of so many tokens: documents are joined by a blank line and cut.
        anchored: what stands for 100 % forgotten: a retrained model, or, where none can be had, the chance level of
            each headline.
    """

    name: str
    version: int
    forget: Mapping[str, tuple[Example, ...]]
    retain: tuple[Example, ...]
    probes: tuple[Probe, ...]
    knowledge: tuple[Headline, ...]
    utility: tuple[Headline, ...]
    data: str
    holdout: tuple[Example, ...] = field(default=())
    summaries: tuple[Summary, ...] = ()
    source: str = ""
    block: int | None = None
    anchored: Zero = Zero.RETRAINED

    def forget_examples(self) -> tuple[Example, ...]:
        """All requests together, each text once: requests may be nested."""
        return tuple({example.id: example for request in self.forget.values() for example in request}.values())

    def probes_of(self, split: Split) -> tuple[Probe, ...]:
        return tuple(probe for probe in self.probes if probe.split is split)

    def probes_behind(self, headlines: Iterable[Headline], split: Split) -> tuple[Probe, ...]:
        """The probes of a split that headlines are computed from."""
        names = {headline.probe for headline in headlines}
        return tuple(probe for probe in self.probes_of(split) if probe.name in names)


AttackSettings = Mapping[str, Any]
"""Settings of one attack (see `suite.attacks`), `name` among them; settings at their default are left out."""

AttackSet = Mapping[Split, tuple[AttackSettings, ...]]
"""The attacks of each split. Contains `none`, so that a score says what it survived, no attack included."""


@dataclass(frozen=True, slots=True)
class TaskEntry:
    """A line of the registry: what is known of a task without loading its data.

    Attributes:
        attack_sets: official attack sets by versioned name, the newest last.
        build: loads the data.
        published: target and retrained checkpoints on the hub by the name of their model, `owner/model[@revision]`; the
            retrained one is None where none was published.
    """

    name: str
    summary: str
    build: Callable[[], Task]
    attack_sets: Mapping[str, AttackSet]
    published: Mapping[str, tuple[str, str | None]] = field(default_factory=dict)

    @property
    def official(self) -> str:
        """Name of the newest official attack set."""
        return list(self.attack_sets)[-1]


def attack_name(settings: AttackSettings) -> str:
    """An attack's name with its budget, as it stands in every row: `relearn[lr=0.001,samples=12,steps=24]`."""
    rest = ",".join(f"{key}={settings[key]}" for key in sorted(settings) if key != "name")
    return f"{settings['name']}[{rest}]" if rest else str(settings["name"])


def examples_digest(examples: Iterable[Example]) -> str:
    """SHA-256 of training text, order included."""
    return _digest([_plain(example) for example in examples])


def _plain(text: Example | Item) -> dict[str, Any]:
    """What is taught or asked. What was added to an item later is left out where it is empty: old digests stay."""
    return {
        key: value
        for key, value in asdict(text).items()
        if key not in ("where", "rewordings") and (value or key not in ("turns", "prefill"))
    }


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
