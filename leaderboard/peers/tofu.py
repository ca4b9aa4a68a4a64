"""Reads the log of TOFU's own evaluation (locuslab/tofu): `eval_log_aggregated.json`, four tables of numbers by index.

The tables are `eval_log.json` (retained facts), `eval_log_forget.json`, `eval_real_author_wo_options.json` and
`eval_real_world_wo_options.json`. Of each, these are read, by the index of the example: `avg_gt_loss`,
`avg_paraphrased_loss` (one average loss per token), `average_perturb_loss` (one per wrong answer), `truth_ratio`,
`rouge1_recall`, `rougeL_recall`, and `generated_text` (the input, what was generated, the ground truth).

The tables are put into the form of open-unlearning's logs, from which samples are made. The file has no aggregates.
Where a retained model's log is known to it, the authors' evaluation writes them beside it, as `aggregate_stat.csv`
(`Retain Probability`, truth ratios with the arithmetic mean of the wrong answers' probabilities). Their script for
submissions, `aggregate_eval_stat.py`, writes others wherever it is told to (`Prob. Retain`, the geometric mean): its
file is read under the same name. Where there is none, they are computed here from the log's numbers by the evaluation's
formulas, and the note says so.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, harmonic_mean
from typing import Any

from leaderboard.peers import published
from leaderboard.peers.answers import AGAIN, CHOICES, GENERATED, samples_of
from leaderboard.peers.comparing import NO_LOG, other_examples
from leaderboard.peers.examples import Model, Numbers, differing, scored
from leaderboard.peers.line import Line, Variant
from leaderboard.peers.log_file import load
from leaderboard.peers.logs import Log
from leaderboard.peers.open_unlearning import Imported
from leaderboard.ranking.uncollected import uncollected
from tasks.plain_text import Unreadable, cut, read_text, shown
from tasks.scoring import METRICS, Estimate, headline, summarise
from tasks.scoring.tables import values
from tasks.task import MissingDataError, Sample, TaskError

PEER = "locuslab-tofu"
FILE, AGGREGATES = "eval_log_aggregated.json", "aggregate_stat.csv"

TABLES = {
    "eval_log.json": ("retain", "Retain"),
    "eval_log_forget.json": ("forget", "Forget"),
    "eval_real_author_wo_options.json": ("ra", "Real Authors"),
    "eval_real_world_wo_options.json": ("wf", "Real World"),
}
"""Our side and the name in the aggregates, by the name of the table."""
FIELDS = {
    "Q_A_Prob": "avg_gt_loss",
    "Q_A_PARA_Prob": "avg_paraphrased_loss",
    "Q_A_PERT_Prob": "average_perturb_loss",
    "truth_ratio": "truth_ratio",
    "Q_A_ROUGE": "generated_text",
}
"""The field that each entry of our log is of."""
KINDS = {"Probability": "Prob.", "ROUGE": "ROUGE", "Truth Ratio": "Truth Ratio"}
SPELLED = {f"{title} {long}": f"{kind} {title}" for _, title in TABLES.values() for long, kind in KINDS.items()}
"""An aggregate's name as the authors' script for submissions writes it, by the one that their evaluation writes."""
NOT_READ = ("KS Test PVal Forget", "KS Test Forget", "Method", "Submitted By")

ROUNDED = 1e-5
"""A truth ratio in the log is the exponential of a difference of float32: up to 2e-6 off in published ones."""

COMPUTED = "the log's own numbers, averaged by the authors' formula"
GEOMETRIC = "theirs takes the geometric mean of the wrong answers' probabilities"
ARITHMETIC = "theirs takes the arithmetic mean of the wrong answers' probabilities"


def read_log(place: Path) -> Log:
    """The log in a folder, or the file itself.

    Raises:
        TaskError: there is none, or it is damaged; names the file, the table and the field.
    """
    file = place / FILE if place.is_dir() else place
    if not os.path.lexists(file):
        raise MissingDataError(f"{file}: no such file. Name {FILE}, or the folder that holds it")
    tables = load(file)
    known = {name: tables[name] for name in TABLES if name in tables}
    if not known:
        raise TaskError(f"{file}: none of {', '.join(TABLES)} is in it. Name the {FILE} of TOFU's evaluation")
    metrics: dict[str, Any] = {}
    places: dict[str, str] = {}
    for name, table in known.items():
        side = TABLES[name][0]
        metrics |= _metrics(side, table, f"{file}: {name}")
        places |= {f"{side}_{entry}": f"{name}: {field}" for entry, field in FIELDS.items()}
    return Log("TOFU", file, metrics, _aggregates(file.with_name(AGGREGATES)), tables, PEER, places)


def read(log: Log, retrained: Log | None = None) -> Imported:
    """The evaluation scored by our metrics, beside its own numbers.

    Raises:
        TaskError: a value is missing or malformed, or two fields of a table have different indices.
    """
    with uncollected():
        model = Model(log, samples_of(log))
        other = Model(retrained, samples_of(retrained)) if retrained else None
        lines: list[Line] = []
        for side, title in TABLES.values():
            lines += [make(model, side, title) for make in (_probability, _rouge, _truth_ratio)]
        found = [line for line in lines if line.ours.n or line.published is not None]
        found += [_utility(model, lines), _forget_quality(model, other)]
    known = {*NOT_READ, *(line.key for line in found)}
    return Imported(model, other, tuple(found), tuple(key for key in log.published if key not in known))


def _metrics(side: str, table: Any, where: str) -> dict[str, Any]:
    """A table as entries of open-unlearning's log."""
    if not isinstance(table, dict):
        raise TaskError(f"{where}: not an object of numbers by index. Evaluate again")
    found: dict[str, Any] = {}

    def rows(field: str, row: Callable[[Any], Any]) -> dict[str, Any]:
        values = table[field]
        if not isinstance(values, dict):
            raise TaskError(f"{where}: {field}: not an object by index. Evaluate again")
        return {index: None if value is None else row(value) for index, value in values.items()}

    for entry, field in FIELDS.items():
        if field not in table:
            continue
        if field == "generated_text":
            values = _texts(table, where)
        elif field == "truth_ratio":
            values = rows(field, lambda ratio: {"score": ratio})
        else:
            values = rows(field, lambda loss: {"avg_loss": loss})
        found[f"{side}_{entry}"] = {"value_by_index": values}
    return found


def _texts(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Generated texts with their ROUGE, by index."""
    texts = table["generated_text"]
    recalls = {name: table[name] for name in ("rouge1_recall", "rougeL_recall") if isinstance(table.get(name), dict)}
    if not isinstance(texts, dict):
        raise TaskError(f"{where}: generated_text: not an object by index. Evaluate again")
    found: dict[str, Any] = {}
    for index, text in texts.items():
        if not isinstance(text, list) or len(text) != 3:
            raise TaskError(
                f"{where}: generated_text: index {index:.60}: a list of input, generated text and ground truth is "
                f"expected, not {text!r:.60}. Evaluate again"
            )
        numbers = {name: values.get(index) for name, values in recalls.items()}
        found[index] = {"generation": text[1], "ground_truth": text[2], **numbers}
    return found


def _aggregates(file: Path) -> dict[str, float | None]:
    """The numbers of `aggregate_stat.csv`, as the script for submissions spells their names; none without the file."""
    if not os.path.lexists(file):
        return {}
    try:
        rows = list(csv.reader(io.StringIO(read_text(file, 1 << 20))))
    except (Unreadable, csv.Error) as error:
        raise TaskError(f"{file}: {error}") from None
    rows = [row for row in rows if row]
    if len(rows) != 2 or len(rows[0]) != len(rows[1]):
        shape = "of unequal lengths" if len(rows) == 2 else "where a line of names and one of numbers is expected"
        raise TaskError(f"{file}: {len(rows)} lines {shape}. Write it again")
    found: dict[str, float | None] = {}
    for name, value in zip(*rows, strict=True):
        key = SPELLED.get(name, name)
        if key in found:
            raise TaskError(f"{file}: {cut(name)} is there twice. Write it again")
        try:
            found[key] = math.nan if name in NOT_READ else float(value)
        except ValueError:
            raise TaskError(f"{file}: {cut(name)}: {shown(value)} is not a number. Write it again") from None
    return {key: value for key, value in found.items() if key not in NOT_READ}


def _published(model: Model, key: str, computed: float | None) -> tuple[float | None, str]:
    """The number beside ours: the file's, else what the authors' formula makes of the log; and where it is from."""
    if key in model.log.published:
        return model.log.published[key], ""
    return computed, COMPUTED if computed is not None else ""


def _probability(model: Model, side: str, title: str) -> Line:
    """Mean probability of the answer; of real authors and world facts, its share of that of all answers."""
    alone = side in ("forget", "retain")
    metric = "probability" if alone else "normalised_probability"
    probe = f"{side}_qa" if alone else CHOICES[side][0]
    samples = model.probe(probe)
    numbers = values(metric, METRICS[metric].compute, samples)
    number, remark = _published(model, key := f"Prob. {title}", fmean(numbers) if numbers else None)
    return Line(key, probe, metric, number, scored(metric, samples), remark=remark)


def _rouge(model: Model, side: str, title: str) -> Line:
    """Mean ROUGE-L recall of generated answers; both published ROUGEs are compared for each text."""
    entry = f"{side}_Q_A_ROUGE"
    samples, key = model.probe(GENERATED[entry]), f"ROUGE {title}"
    theirs: dict[str, Numbers] = {}
    for name in ("rouge1_recall", "rougeL_recall"):
        rows = model.log.metrics.get(entry, {}).get("value_by_index", {})
        if any(row and name in row for row in rows.values()):
            theirs[name] = model.log.rows(entry, name, float)
    items = {item for name, rows in theirs.items() for item in differing(samples, rows, METRICS[name].compute)}
    recalls = [value for value in theirs.get("rougeL_recall", {}).values() if value is not None]
    number, remark = _published(model, key, fmean(recalls) if recalls else None)
    ours = scored("rougeL_recall", samples)
    return Line(key, GENERATED[entry], "rougeL_recall", number, ours, unlike=len(items), remark=remark)


def _truth_ratio(model: Model, side: str, title: str) -> Line:
    """Mean of the truth ratio x, as min(x, 1/x) on the forget set and max(0, 1 - x) elsewhere.

    The right answer's loss is `avg_paraphrased_loss` in every table: of real authors and world facts that is the
    original answer, scored again.
    """
    probe, key = CHOICES[side][0], f"Truth Ratio {title}"
    if side in AGAIN and model.probe(AGAIN[side][0]):
        probe = AGAIN[side][0]
    samples = model.probe(probe)
    theirs = model.log.rows(f"{side}_truth_ratio", "score", float)
    compute = METRICS["truth_ratio_geometric"].compute

    def inverse(sample: Sample) -> float | None:
        ratio = compute(sample)
        return None if ratio is None else _inverse(ratio)

    items = differing(samples, theirs, compute, inverse, tolerance=ROUNDED) if theirs else []
    forget = side == "forget"
    metric = "truth_ratio_geometric_forget" if forget else "truth_ratio_arithmetic_retain"
    ratio, name = ("arithmetic", ARITHMETIC) if forget else ("geometric", GEOMETRIC)
    ratios = values(other := f"truth_ratio_{ratio}", METRICS[other].compute, samples)
    shaped = [min(x, _inverse(x)) if forget else max(0.0, 1 - x) for x in ratios]
    variants = (Variant(fmean(shaped), name),) if shaped else ()
    ours = scored(metric, samples)
    computed = variants[0].value if forget and variants else ours.value  # arithmetic, as in the authors' evaluation
    number, remark = _published(model, key, computed)
    return Line(key, probe, metric, number, ours, variants, len(items) if theirs else None, remark)


def _utility(model: Model, lines: Sequence[Line]) -> Line:
    """Harmonic mean of the nine numbers about retained knowledge."""
    key, metric = "Model Utility", "model_utility_arithmetic"
    terms = [line for line in lines if "Forget" not in line.key]
    lacking = [line.probe for line in terms if not line.ours.n]
    ours = headline.harmonic_mean(*(line.ours for line in terms))
    if lacking:
        ours = Estimate.null(f"the log has nothing for {', '.join(dict.fromkeys(lacking))}")
    number, remark = _published(model, key, _harmonic([line.published for line in terms]))
    geometric = _harmonic([line.variants[0].value if line.variants else line.ours.value for line in terms])
    variants = () if lacking or geometric is None else (Variant(geometric, GEOMETRIC),)
    return Line(key, "model_utility", metric, number, ours, variants, remark=remark)


def _forget_quality(model: Model, retrained: Model | None) -> Line:
    """p-value of a Kolmogorov-Smirnov test between the truth ratios of the model and of the retrained one."""
    key, metric = "Forget Quality", "forget_quality"
    ours, computed = Estimate.null(NO_LOG), None
    if retrained:
        reason = other_examples(model, retrained)
        tables = [one.probe("forget_paraphrase") for one in (model, retrained)]
        ours = Estimate.null(reason) if reason else summarise(metric, tables[:1], tables[1:])
        computed = _same_distribution(*tables) if ours.known else None
    number, remark = _published(model, key, computed)
    return Line(key, metric, metric, number, ours, remark=remark)


def _same_distribution(samples: Sequence[Sample], retrained: Sequence[Sample]) -> float:
    """p as in the authors' code: of the logarithm of 1/x, which has the same order as 1/x and does not overflow."""
    from scipy.stats import ks_2samp

    def log_ratio(sample: Sample) -> float:
        right, *wrong = published.logprobs(sample)
        return right - fmean(wrong)

    mine, theirs = ([log_ratio(sample) for sample in table] for table in (samples, retrained))
    return float(ks_2samp(mine, theirs).pvalue)


def _harmonic(numbers: Sequence[float | None]) -> float | None:
    """The harmonic mean of numbers of which none is missing, infinite or negative."""
    whole = [one for one in numbers if one is not None and math.isfinite(one) and one >= 0]
    return harmonic_mean(whole) if whole and len(whole) == len(numbers) else None


def _inverse(ratio: float) -> float:
    return 1 / ratio if ratio else math.inf
