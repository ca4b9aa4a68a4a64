"""What a task is: text to forget, text to keep, and the probes that measure both.

Nothing here depends on models or tokenizers. An engine turns (checkpoint, probe) into `Sample`s, one per item;
`tasks.scoring` turns samples into numbers.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import Any

from tasks.errors import MissingError, RequestError


class TaskError(RequestError, ValueError):
    """A task's data, or another suite's log, is malformed or differs from what was published. The message says where.
    Who asks puts it right, or fetches it again."""


class MissingDataError(TaskError, MissingError):
    """A task's data is not here and not to be had. The message says where it was looked for, and where to get it."""


class Subset(StrEnum):
    """Whether an item is to be forgotten, to be kept, or was never trained on."""

    FORGET = "forget"
    RETAIN = "retain"
    HOLDOUT = "holdout"


class Split(StrEnum):
    """A hyperparameter search may use `dev`; headlines are computed on `test`."""

    DEV = "dev"
    TEST = "test"


class ProbeKind(StrEnum):
    """What an engine computes for a probe."""

    GENERATE = "generate"
    """Greedy decoding after the prompt."""
    LOGPROB = "logprob"
    """Teacher-forced log-probability of each token of the reference answer."""
    CHOICE = "choice"
    """Summed log-probability of each of several answers."""


class Style(StrEnum):
    """How prompt and answer are formatted for a model."""

    QUESTION = "question"
    """A question and its answer: wrapped in the model's template (chat or plain), with end-of-text after them."""
    TEXT = "text"
    """Running text: the answer follows the prompt, without a template."""


class Need(StrEnum):
    """What a `logprob` probe needs from the model besides the log-probabilities of the answer's tokens."""

    VOCABULARY = "vocabulary"
    """Mean and variance of log p over the vocabulary at each token (Min-K%++)."""
    GRADIENT_NORM = "gradient_norm"
    """Norm of the loss's gradient (a membership score): one backward pass per text."""
    GRADIENT_NORM_BUT_LAST = "gradient_norm_but_last"
    """The same of the loss of all tokens but the last: another backward pass."""


@dataclass(frozen=True, slots=True)
class Example:
    """A text to train on; the loss covers the answer's tokens only.

    Attributes:
        where: file and row that it was read from, for messages; not part of the training text.
    """

    id: str
    prompt: str
    answer: str
    style: Style = Style.QUESTION
    where: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Turn:
    """An earlier turn of the conversation: a question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Item:
    """One question of a probe. `answers[correct]` is the reference; the others are wrong alternatives.

    Attributes:
        where: file and row that it was read from, for messages; not part of the prompt.
        turns: earlier turns of the conversation, the oldest first.
        prefill: the beginning of the answer: given to the model, neither generated nor scored.
        rewordings: paraphrases of the question, for attacks that reword; not part of the prompt.
        begin: whether running text begins with the beginning-of-text token, for tokenizers that put one there.
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
    begin: bool = True

    @property
    def reference(self) -> str:
        return self.answers[self.correct]


@dataclass(frozen=True, slots=True)
class Sampling:
    """Several answers sampled at a temperature instead of the greedy one; the one that shows most knowledge is scored.

    Attributes:
        draws: answers per question.
        temperature: divides the logits.
        seed: seed of the sampling.
    """

    draws: int
    temperature: float
    seed: int = 0


@dataclass(frozen=True)
class Probe:
    """One question set: its items, their subset and split, how they are put to a model, and how answers are scored.

    Attributes:
        metrics: names in `tasks.scoring.METRICS`; each must be computable from samples of this kind.
        max_new_tokens: longest generated answer, in tokens (`generate` only).
        stop: a generated answer ends before the first of these texts, and is stripped (`generate` only).
        max_reference_tokens: the reference is truncated to so many tokens, the tokenizer's special tokens counted, and
            decoded again (`generate` only).
        max_tokens: longer running text is truncated to so many tokens, prompt and answer together (`logprob` only).
            Without it, a text that does not fit the model's context is an error.
        needs: what the model has to compute besides (`logprob` only).
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
        """SHA-256 of everything that determines the samples. Metrics do not: another metric needs no new samples."""
        content = (self.name, self.subset, self.split, self.kind, [_plain(item) for item in self.items])
        options = {
            "stop": self.stop,
            "max_reference_tokens": self.max_reference_tokens,
            "max_tokens": self.max_tokens,
            "needs": sorted(self.needs),
            "sampling": asdict(self.sampling) if self.sampling else None,
        }
        given = {key: value for key, value in options.items() if value}
        new_tokens = self.max_new_tokens if self.kind is ProbeKind.GENERATE else 0
        return _digest([*content, new_tokens, *([given] if given else [])])


def limited(probes: Iterable[Probe], n: int) -> tuple[Probe, ...]:
    """The probes with their first `n` items each. Their digests change, as with any other change of items."""
    return tuple(replace(probe, items=probe.items[:n]) for probe in probes)


@dataclass(frozen=True, slots=True)
class Summary:
    """Metrics over several probes of a split, or over a model and an anchor. Needs no further samples.

    Attributes:
        name: fills the column `probe` of the board's rows.
        probes: names of the probes, in the order in which the metrics take their samples.
        metrics: names in `tasks.scoring.SUMMARIES`.
    """

    name: str
    subset: Subset
    probes: tuple[str, ...]
    metrics: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """A model's output for one item: everything that scoring needs, and nothing that needs a tokenizer.

    Attributes:
        item: the item's id, unique within its probe.
        reference: the right answer's text, as scored.
        generated: greedily decoded text (`generate`).
        sampled: texts sampled at a temperature, where a probe wants several (`generate`); `generated` is then the
            first of them.
        token_logprobs: log p of each reference token given those before it, in nats (`logprob`).
        token_correct: whether the teacher-forced argmax is that token (`logprob`).
        choice_logprobs: log p of each answer, summed over its tokens, in nats (`choice`).
        choice_lengths: tokens of each answer (`choice`).
        correct: index of the right answer among the choices (`choice`).
        vocab_means, vocab_variances: mean and variance of log p over the vocabulary at each reference token, in
            nats and nats^2, where a probe needs them.
        scalars: named numbers that only a model can compute (a gradient norm, a reference model's loss).
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
    """A (probe, metric) pair that measures a kind of memorized knowledge or of utility. Higher always means more of it.

    Attributes:
        chance: value of the metric for a model that knows nothing.
    """

    probe: str
    metric: str
    chance: float = 0.0


class Zero(StrEnum):
    """The score that counts as having forgotten everything."""

    RETRAINED = "retrained"
    """The score of a model retrained without the forget set."""
    CHANCE = "chance"
    """A headline's chance level. What a relearning attack teaches then counts as recovered knowledge."""


@dataclass(frozen=True)
class Task:
    """A benchmark: the forget set, the retain set, the probes, and which numbers are the headlines.

    Attributes:
        forget: the forget set, divided into named requests that together make up all of it. A trial may unlearn them
            at once or one after another.
        retain: text whose knowledge must be kept; both anchors are trained on it.
        holdout: text of the same kind that no model has seen.
        probes: the probes of both splits.
        knowledge: the forget headlines; a task's knowledge is the largest of them.
        utility: the retain headlines; a task's utility is the smallest of them.
        data: SHA-256 of the task's rows; does not depend on the files or the place that they were read from.
        summaries: metrics over several probes, or over a model and an anchor.
        source: where the rows were read: a hub data set at its pinned revision, or a local mirror; empty for a task
            that is generated here.
        block: running text is trained on in blocks of so many tokens: documents are joined by a blank line and cut.
        anchored: what counts as 100 % forgotten: a retrained model, or, where none can exist, the chance level of
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
        """The examples of all requests, each once: requests may be nested."""
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
"""The attacks of each split. Contains `none`, so that the unattacked model is measured like the attacked ones."""


@dataclass(frozen=True, slots=True)
class TaskEntry:
    """A task in the registry: what is known without loading its data.

    Attributes:
        attack_sets: official attack sets by versioned name, the newest last.
        build: loads the data.
        published: target and retrained checkpoints on the hub by the name of their model, `owner/model[@revision]`; the
            retrained one is None where none was published.
        published_args: what their chat template was given when they were trained and evaluated.
    """

    name: str
    summary: str
    build: Callable[[], Task]
    attack_sets: Mapping[str, AttackSet]
    published: Mapping[str, tuple[str, str | None]] = field(default_factory=dict)
    published_args: Mapping[str, str] = field(default_factory=dict)

    @property
    def official(self) -> str:
        """Name of the newest official attack set."""
        return list(self.attack_sets)[-1]


def attack_name(settings: AttackSettings) -> str:
    """An attack's name with its settings, as in the column `attack`: `relearn[lr=0.001,samples=12,steps=24]`."""
    rest = ",".join(f"{key}={settings[key]}" for key in sorted(settings) if key != "name")
    return f"{settings['name']}[{rest}]" if rest else str(settings["name"])


@lru_cache(4096)
def attack_seed(name: str) -> tuple[str, int]:
    """An attack's name without its seed, and the seed: 0, the default of all attacks, where the name tells none."""
    found = _SEED.search(name)
    if found is None:
        return name, 0
    before, after = name[: found.start()], name[found.end() :]
    if after == "]":  # the seed was the last setting, or the only one
        before, after = before[:-1], "]" if before.endswith(",") else ""
    return before + after, int(found[1])


_SEED = re.compile(r"(?<=[\[,])seed=(0|[1-9]\d{0,9})(?:,|(?=\]\Z))", re.ASCII)


def examples_digest(examples: Iterable[Example]) -> str:
    """SHA-256 of training examples in their order."""
    return _digest([_plain(example) for example in examples])


def _plain(text: Example | Item) -> dict[str, Any]:
    """The fields that enter a digest. Later additions are left out at their default, so that old digests stay valid."""
    return {
        key: value
        for key, value in asdict(text).items()
        if key not in ("where", "rewordings") and (key, value) not in (("turns", ()), ("prefill", ""), ("begin", True))
    }


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
