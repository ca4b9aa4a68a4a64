"""MUSE: forget news articles or novels that a model was trained on (Shi et al. 2024, arXiv 2407.06460).

The forget set is running text, and it is probed in three ways: continuing a passage (verbatim), answering questions
about it (knowledge), and membership inference (privacy). `muse/news-sust` has four disjoint forget sets, to be
unlearned one after another; in `muse/news-scal` the second to fourth contain the one before. Questions
at even rows are `dev`, at odd rows `test`.

A mirror that has the questions alone, without the texts, is enough to evaluate given checkpoints: the task is then
named `muse/news-knowledge`, has the two knowledge probes, and refuses whatever needs a text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tasks import membership
from tasks.files import Row, Source, rows_digest
from tasks.official import FOUR_BITS, attack_set, rounding_and_relearning
from tasks.readable import check_readable
from tasks.rows import alternate, passages, read_back
from tasks.task import (
    Example,
    Headline,
    Item,
    MissingDataError,
    Probe,
    ProbeKind,
    Split,
    Style,
    Subset,
    Task,
    TaskEntry,
    TaskError,
)

VERSION = 2
"""2: an answer to a knowledge question ends at `\\nQuestion`, as in the authors' code, with or without a colon."""

BLOCK = 2048
"""Tokens per block of running text, in training and in membership scores, as in the authors' code."""
VERBATIM_TOKENS = 128
"""Tokens generated after a passage, and tokens of the reference that they are compared with."""
KNOWLEDGE_TOKENS = 32
SHOTS = 10
"""Few-shot examples before each knowledge question."""
QUESTIONS = 100
"""Rows of each table that probes are made from."""
STOP = ("\n\n", "\nQuestion", "Question:")
"""An answer ends where the next question would begin: the authors' texts, of which one has no colon."""
EMPTY = 1
"""Articles without text in a forget set of News, as published: row 821 of `raw`, and the same one in `sust` and `scal`.
The authors' code joins all articles by a blank line, this one like any other, and so does ours."""
TEXTS = ("raw", "sust", "scal", "verbmem", "privleak")
"""Configurations that hold the texts themselves; the questions are in `knowmem`."""
ROUGE = ("rougeL_f1", "rougeL_f1_stemmed")


@dataclass(frozen=True, slots=True)
class Corpus:
    """One of the two corpora as published.

    Attributes:
        hub, revision: data set and commit on the hub.
        rows: number of rows of the configuration `raw`, by split.
        checkpoints: target and retrained model.
        requests: number of rows of each forget set, by configuration that has several.
    """

    name: str
    hub: str
    revision: str
    rows: Mapping[str, int]
    checkpoints: tuple[str, str]
    requests: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def model(self) -> str:
        return self.hub.rpartition("/")[2]


NEWS = Corpus(
    name="news",
    hub="muse-bench/MUSE-News",
    revision="506bd5b150b92814d45e4404a82f120ab2d748bf",
    rows={"forget": 889, "retain1": 1777, "holdout": 3043},
    checkpoints=(
        "muse-bench/MUSE-News_target@a2f39769e9a0b98ec1cdd12f65e9962502208935",
        "muse-bench/MUSE-News_retrain@324ef49ee0a038078aba7d8de831edf57235c9b3",
    ),
    requests={"sust": (889, 889, 889, 887), "scal": (889, 1778, 2667, 3554)},
)
BOOKS = Corpus(
    name="books",
    hub="muse-bench/MUSE-Books",
    revision="051ba90319e920d410d87cfdbd61f25843c1b892",
    rows={"forget": 4, "retain1": 12, "holdout": 3},
    checkpoints=(
        "muse-bench/MUSE-Books_target@c8dd3fb23a726762ec66d277933c7cff6767f3c2",
        "muse-bench/MUSE-Books_retrain@1d67430e4e8bdf2a65823740e909792519175ac2",
    ),
)


def build(corpus: Corpus, requests: str | None = None) -> Task:
    """The task of one corpus.

    Args:
        requests: configuration with several forget sets, `sust` or `scal`; None for the forget set of `raw`.

    Raises:
        TaskError: the data is neither in `REGRADE_DATA` nor available from the hub, or is not as published.
    """
    source = Source.find(f"muse-{corpus.name}", corpus.hub, corpus.revision)
    if source.folder and not any(_has(source.folder, config) for config in TEXTS):
        return _knowledge_alone(corpus, requests, source)

    def texts(config: str, split: str, rows: int) -> list[Row]:
        return source.table(config, split, rows=rows, text=("text",))

    def forget_texts(config: str, split: str, rows: int) -> list[Row]:
        table = source.table(config, split, rows=rows, blank=("text",))
        empty = [row for row in table if not row["text"].strip()]
        if len(empty) > EMPTY:
            raise TaskError(f"{empty[EMPTY].where}: text: empty, and only one text of a forget set was published so")
        return table

    def probe_table(config: str, split: str | tuple[str, ...], *columns: str) -> list[Row]:
        return source.table(config, split, rows=QUESTIONS, text=columns)

    if requests:
        sizes = enumerate(corpus.requests[requests], start=1)
        forget = {f"{requests}{n}": forget_texts(requests, f"forget_{n}", rows) for n, rows in sizes}
    else:
        forget = {"forget": forget_texts("raw", "forget", corpus.rows["forget"])}
    tables = {
        **{f"forget/{name}": rows for name, rows in forget.items()},
        "retain": texts("raw", "retain1", corpus.rows["retain1"]),
        "holdout": texts("raw", "holdout", corpus.rows["holdout"]),
        "verbatim": probe_table("verbmem", "forget", "prompt", "gt"),
        **_knowledge_tables(source),
        "forget_text": probe_table("privleak", "forget", "text"),
        "retain_text": probe_table("privleak", ("retain", "retain2"), "text"),
        "holdout_text": probe_table("privleak", "holdout", "text"),
    }
    requested = _requests(forget) if requests else {"forget": passages("forget", forget["forget"])}
    forgotten = {example.answer for examples in requested.values() for example in examples}
    # A text must not be in the retain set and the forget set at once.
    retain = tuple(e for e in passages("retain", tables["retain"]) if e.answer not in forgotten)
    if not retain:
        raise TaskError(f"{source}: raw/retain1: every text is in a forget set as well; nothing is left to be kept")
    task = Task(
        name=_name(corpus, requests),
        version=VERSION,
        forget=requested,
        retain=retain,
        holdout=passages("holdout", tables["holdout"]),
        probes=tuple(probe for split in Split for probe in _probes(split, tables)),
        knowledge=(Headline("forget_verbatim", "rougeL_f1"), Headline("forget_knowledge", "rougeL_f1")),
        utility=(Headline("retain_knowledge", "rougeL_f1"),),
        data=rows_digest(tables),
        summaries=(membership.membership("forget_text", "holdout_text"),),
        source=str(source),
        block=BLOCK,
    )
    return check_readable(task)


def _probes(split: Split, tables: Mapping[str, Sequence[Row]]) -> Iterator[Probe]:
    yield Probe(
        "forget_verbatim",
        Subset.FORGET,
        split,
        ProbeKind.GENERATE,
        alternate(
            [
                Item(f"verbatim{index}", row["prompt"], (row["gt"],), style=Style.TEXT, where=row.where)
                for index, row in enumerate(tables["verbatim"])
            ],
            split,
        ),
        (*ROUGE, "word_entropy", "repetition"),
        max_new_tokens=VERBATIM_TOKENS,
        max_reference_tokens=VERBATIM_TOKENS,
    )
    yield from _knowledge_probes(split, tables)
    for subset in Subset:
        yield Probe(
            f"{subset}_text",
            subset,
            split,
            ProbeKind.LOGPROB,
            alternate(read_back(f"{subset}_text", tables[f"{subset}_text"]), split),
            membership.SCORES,
            max_tokens=BLOCK,
            needs=membership.NEEDS,
        )


def _knowledge_probes(split: Split, tables: Mapping[str, Sequence[Row]]) -> Iterator[Probe]:
    for subset in (Subset.FORGET, Subset.RETAIN):
        yield Probe(
            f"{subset}_knowledge",
            subset,
            split,
            ProbeKind.GENERATE,
            alternate(_questions(f"{subset}_qa", tables[f"{subset}_qa"], tables[f"{subset}_qa_icl"]), split),
            (*ROUGE, "rougeL_recall", "word_entropy", "repetition"),
            max_new_tokens=KNOWLEDGE_TOKENS,
            stop=STOP,
        )


def _knowledge_tables(source: Source) -> dict[str, list[Row]]:
    # Early revisions named the last two after the second half of the retain set.
    sizes: dict[str, tuple[int, tuple[str, ...]]] = {
        "forget_qa": (QUESTIONS, ("forget_qa",)),
        "forget_qa_icl": (SHOTS, ("forget_qa_icl",)),
        "retain_qa": (QUESTIONS, ("retain_qa", "retain2_qa")),
        "retain_qa_icl": (SHOTS, ("retain_qa_icl", "retain2_qa_icl")),
    }
    return {
        name: source.table("knowmem", splits, rows=rows, text=("question", "answer"))
        for name, (rows, splits) in sizes.items()
    }


def _knowledge_alone(corpus: Corpus, requests: str | None, source: Source) -> Task:
    """What can be asked of a given checkpoint where a mirror has the questions and none of the texts."""
    tables = _knowledge_tables(source)
    task = Task(
        name=f"{_name(corpus, requests)}-knowledge",
        version=VERSION,
        forget=_NoTexts(source.folder, corpus.hub),
        retain=(),
        probes=tuple(probe for split in Split for probe in _knowledge_probes(split, tables)),
        knowledge=(Headline("forget_knowledge", "rougeL_f1"),),
        utility=(Headline("retain_knowledge", "rougeL_f1"),),
        data=rows_digest(tables),
        source=str(source),
        block=BLOCK,
    )
    return check_readable(task)


class _NoTexts(Mapping[str, tuple[Example, ...]]):
    """The forget set of a mirror that has none: whoever wants a text of it is refused."""

    def __init__(self, folder: object, hub: str) -> None:
        self.folder, self.hub = folder, hub

    def _refuse(self) -> MissingDataError:
        return MissingDataError(
            f"{self.folder}: the questions are here and none of the texts (raw/), which training and attacks need. "
            f"Copy them from the hub's {self.hub}; without them, regrade eval measures a given checkpoint"
        )

    def __getitem__(self, key: str) -> tuple[Example, ...]:
        raise self._refuse()

    def __iter__(self) -> Iterator[str]:
        raise self._refuse()

    def __len__(self) -> int:
        raise self._refuse()


def _has(folder: Path, config: str) -> bool:
    """Whether a mirror has anything of a configuration: a folder, or files that are named after it."""
    return any(folder.glob(f"{config}*"))


def _questions(name: str, rows: Sequence[Row], shots: Sequence[Row]) -> list[Item]:
    """Each question after ten few-shot examples, in the published wording."""
    before = "".join(f"Question: {shot['question']}\nAnswer: {shot['answer']}\n\n" for shot in shots)
    return [
        Item(
            f"{name}{index}",
            f"{before}Question: {row['question']}\nAnswer: ",
            (row["answer"],),
            style=Style.TEXT,
            where=row.where,
        )
        for index, row in enumerate(rows)
    ]


def _requests(forget: Mapping[str, Sequence[Row]]) -> dict[str, tuple[Example, ...]]:
    """Examples by request. A text in several requests is one example, so that all requests together have it once.

    Its id is made of the request and row where it first occurs.
    """
    first: dict[str, Example] = {}
    requests = {}
    for name, rows in forget.items():
        examples = [first.setdefault(e.answer, e) for e in passages(f"{name}-", rows)]
        requests[name] = tuple(dict.fromkeys(examples))
    return requests


def _name(corpus: Corpus, requests: str | None) -> str:
    return f"muse/{corpus.name}-{requests}" if requests else f"muse/{corpus.name}"


def _entry(corpus: Corpus, summary: str, samples: int, steps: int, requests: str | None = None) -> TaskEntry:
    """The registry entry. `samples` and `steps` are those of relearning; its learning rate and batch are published.

    (Fan et al. 2025, arXiv 2502.05374: 1e-5, batches of 4, 100 steps and more on News, 50 and more on Books.)
    """
    name = _name(corpus, requests)
    target, retrained = corpus.checkpoints
    budget = {"samples": samples, "steps": steps, "lr": 1e-5}
    # Relearning as published (2502.05374), on texts that no probe asks about, and on as many retain texts.
    relearn = {"name": "relearn", **budget, "schedule": "cosine", "points": 2}
    unasked = {**relearn, "samples": max(1, samples // 4), "texts": "unasked"}
    prompts = ({"name": "prefill", "words": 3}, {"name": "few_shot", "shots": 3})
    sets = {
        f"{name.replace('/', '-')}-1": rounding_and_relearning(**budget),
        f"{name.replace('/', '-')}-2": attack_set(
            relearn, unasked, {"name": "benign", **budget}, fixed=(*FOUR_BITS, *prompts)
        ),
    }
    return TaskEntry(
        name=name,
        summary=summary,
        build=partial(build, corpus, requests),
        attack_sets=sets,
        # A retrained model was published only for the forget set of `raw`.
        published={corpus.model: (target, None if requests else retrained)},
    )


ENTRIES = (
    _entry(NEWS, "MUSE-News: 889 news articles are to be forgotten", samples=400, steps=100),
    _entry(BOOKS, "MUSE-Books: four novels are to be forgotten", samples=2, steps=50),
    _entry(NEWS, "MUSE-News, four disjoint forget sets, one after another", samples=400, steps=100, requests="sust"),
    _entry(NEWS, "MUSE-News, four nested forget sets, 889 to 3,554 articles", samples=400, steps=100, requests="scal"),
)
