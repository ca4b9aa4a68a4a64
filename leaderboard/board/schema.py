"""The five tables of the board, and the only place where columns are defined.

`trials` has one row per trial, `measurements` one per number (long form), `samples` one per (evaluation, probe, item),
so that every number can be computed again from the model's outputs. `items` has what each headline is the mean of, one
row per (evaluation, probe, metric): entries are compared by it, and it can be made again from the samples. `steps` has
the log of an unlearning run, one row per (trial, forget request).

Each column has a role. `result` columns are what a trial computes: two runs of one trial on one machine type, torch
build and thread count agree in them bit for bit. `observed` columns (seconds, bytes, host, ...) may differ. `key`
columns are results that together identify a row: two rows with the same key are the same row.

A measurement of an anchor (subject `target` or `retrained`) belongs to no single trial: its `trial` is the anchors' id,
which every trial row repeats in `anchors`. Only rows with the same `anchors` may be ranked together.
"""

from __future__ import annotations

from enum import StrEnum
from functools import cache
from typing import Any

import pyarrow as pa

VERSION = 1
"""Increased when a column changes its meaning. Added or removed columns do not: readers fill them with null."""


CHANCE = "chance"
"""Replaces the retrained model's digest in `anchor_ids` where the chance level is the zero."""


ANCHORS = ("target", "retrained")
"""Subjects of the anchors: the model before unlearning, and the one that never saw the forget set."""


UNLEARNED = "unlearned"
"""The subject that is ranked: the weights after unlearning, by a trial or made elsewhere."""


RAW = "raw"
"""`matching` of rows about weights without retention matching."""


RANDOM_CHANGE = "random_change"
"""`optimizer` of a null trial: the target plus a random change of its weights. It is never ranked."""


def matching(floor: float) -> str:
    """`matching` of rows about weights mixed with the target's until utility reaches a floor (arXiv 2406.09179)."""
    return f"uwc[floor={floor:g}]"


def pairs_of(anchors: str | None) -> list[str | None]:
    """The pairs of anchors whose mean is a trial's scale, by the column `anchors`: one, or one for each seed.

    A text that names too many names none that was measured.
    """
    if anchors is None or anchors.count(BETWEEN_PAIRS) >= MOST_SEEDS:
        return [anchors]
    return list(anchors.split(BETWEEN_PAIRS))


BETWEEN_PAIRS = ","
"""Joins what a trial's columns say of its pairs of anchors, one for each seed that they were trained with."""
MOST_SEEDS = 100
"""Most seeds of an attack or of anchors; beyond ten, intervals hardly become narrower."""


class Role(StrEnum):
    KEY = "key"
    RESULT = "result"
    OBSERVED = "observed"


class Status(StrEnum):
    """The outcome of a trial or a measurement; every status but `ok` has a reason."""

    OK = "ok"
    STOPPED = "stopped"
    """Ended early by its early-stopping criterion (`until`)."""
    DIVERGED = "diverged"
    """The loss or the weights stopped being finite; the last finite weights were measured, if there are any."""
    UNCHANGED = "unchanged"
    """Every weight equals the target's, bit for bit: nothing was unlearned, whatever the scores are."""
    FAILED = "failed"
    """An error; the next run over the same store runs the trial again."""
    NULL = "null"
    """A measurement that cannot be computed."""


_STRING, _INT, _FLOAT, _BOOL = pa.string(), pa.int64(), pa.float64(), pa.bool_()


def _column(name: str, kind: pa.DataType, role: Role, doc: str) -> pa.Field:
    return pa.field(name, kind, nullable=role is not Role.KEY, metadata={"role": role.value, "doc": doc})


def _table(name: str, *columns: pa.Field) -> pa.Schema:
    return pa.schema(columns, metadata={"table": name, "schema_version": str(VERSION)})


_K, _R, _O = Role.KEY, Role.RESULT, Role.OBSERVED

TRIALS = _table(
    "trials",
    _column("trial", _STRING, _K, "SHA-256 of the trial's canonical JSON"),
    _column("entry", _STRING, _R, "the trial without its seed: one line of the board"),
    _column("status", _STRING, _R, "ok, stopped, diverged, unchanged or failed"),
    _column("reason", _STRING, _R, "why the status is not ok; null where it is"),
    _column("task", _STRING, _R, "task name"),
    _column("task_version", _INT, _R, "version of the task's definition"),
    _column("data", _STRING, _R, "SHA-256 of the rows behind the task"),
    _column("model", _STRING, _R, "name, path or hub id of the model"),
    _column(
        "template",
        _STRING,
        _R,
        "how questions are put: bare, plain, or chat- and a digest of the chat template and its arguments",
    ),
    _column("template_args", _STRING, _R, "canonical JSON of what the chat template is given; null for nothing"),
    _column("objective", _STRING, _R, "what forgetting means"),
    _column("smoothing", _STRING, _R, "which neighbourhood is asked"),
    _column("optimizer", _STRING, _R, "name of the optimizer; random_change for a null trial, which none moved"),
    _column(
        "adapter", _STRING, _R, "what the steps moved: full (the weights themselves), or an adapter merged into them"
    ),
    _column("grade", _STRING, _R, "second, first, compressed, zeroth or hybrid"),
    _column("zo_samples", _INT, _R, "random directions per zeroth-order step; null without such steps"),
    _column("zo_ratio", _FLOAT, _R, "share of zeroth-order steps: 0 and 1 for pure optimizers"),
    _column("steps", _INT, _R, "unlearning steps asked for"),
    _column("steps_done", _INT, _R, "unlearning steps made"),
    _column("seed", _INT, _R, "seed of the trial"),
    _column("spec", _STRING, _R, "canonical JSON of the trial"),
    _column(
        "anchors",
        _STRING,
        _R,
        "id of the anchors' recipe, of several seeds joined by ','; null when the trial failed before",
    ),
    _column(
        "anchor_ids",
        _STRING,
        _R,
        "digests of target and retrained model, joined by ':', of several seeds by ','; chance for no such model",
    ),
    _column("weights", _STRING, _R, "digest of the unlearned weights"),
    _column("value_calls", _INT, _R, "loss values computed"),
    _column("gradient_calls", _INT, _R, "gradients computed"),
    _column("directional_calls", _INT, _R, "forward-mode derivatives computed"),
    _column("curvature_calls", _INT, _R, "curvature samples and Hessian-vector products computed"),
    _column("tokens", _INT, _R, "tokens that passed through the model forwards while unlearning"),
    _column("change_norm", _FLOAT, _R, "L2 norm of the weights' change"),
    _column("changed_share", _FLOAT, _R, "share of the weights that changed, in the model's dtype"),
    _column("changed_share_bf16", _FLOAT, _R, "share of the weights that differ once rounded to bfloat16"),
    _column("flipped_share_4bit", _FLOAT, _R, "share of the linear layers' weights whose 4-bit code changed (rtn)"),
    _column("flipped_share_8bit", _FLOAT, _R, "share of the linear layers' weights whose 8-bit code changed (rtn)"),
    _column("drowned", _INT, _R, "zeroth-order differences small enough to be rounding; null where none are taken"),
    _column("dtype", _STRING, _R, "dtype of the weights"),
    _column("device", _STRING, _R, "kind of device: cpu, or the GPU's name"),
    _column("torch", _STRING, _R, "torch version"),
    _column("threads", _INT, _R, "CPU threads of the trial"),
    _column("suite_version", _STRING, _R, "version of regrade"),
    _column("plugins", _STRING, _R, "canonical JSON of the packages of methods that are not Regrade's own; or null"),
    _column("search", _STRING, _O, "canonical JSON of the search or grid that the trial was first part of; or null"),
    _column("source", _STRING, _O, "where the rows behind the task were read: hub data set and revision, or mirror"),
    _column("code", _STRING, _O, "digest of the suite's source"),
    _column("unlearn_seconds", _FLOAT, _O, "wall time of unlearning when it was computed"),
    _column("peak_bytes", _INT, _O, "peak memory while unlearning"),
    _column("host", _STRING, _O, "machine that wrote the row"),
    _column("pid", _INT, _O, "process that wrote the row"),
    _column("written_at", _STRING, _O, "UTC time of writing, ISO 8601"),
)

MEASUREMENTS = _table(
    "measurements",
    _column("trial", _STRING, _K, "trial id; for the anchors, the anchors' id"),
    _column("subject", _STRING, _K, "target, retrained, unlearned, or unlearned@STEP for an intermediate checkpoint"),
    _column("attack", _STRING, _K, "name, budget and seed of the attack; none"),
    _column("point", _INT, _K, "place on the attack's curve (e.g. relearning steps); 0 where it has none"),
    _column("probe", _STRING, _K, "question set, or a summary of several"),
    _column("subset", _STRING, _K, "forget, retain or holdout; all for what is about the weights alone"),
    _column("split", _STRING, _K, "dev, test, or all: the questions of both"),
    _column("matching", _STRING, _K, "raw, or how utility was matched before measuring"),
    _column("engine", _STRING, _K, "engine that answered, with its dtype"),
    _column("metric", _STRING, _K, "metric and variant"),
    _column("value", _FLOAT, _R, "the number; null with a reason where it cannot be computed"),
    _column("stderr", _FLOAT, _R, "standard error over examples"),
    _column("n", _INT, _R, "examples behind the number"),
    _column("direction", _STRING, _R, "up when a higher value means more knowledge, down when less, else null"),
    _column("headline", _STRING, _R, "knowledge or utility when the task names this number a headline; else null"),
    _column("chance", _FLOAT, _R, "value of a model that knows nothing (headlines only)"),
    _column("status", _STRING, _R, "ok, null or failed"),
    _column("reason", _STRING, _R, "why the value is null"),
    _column("task", _STRING, _R, "task name"),
    _column("task_version", _INT, _R, "version of the task's definition"),
    _column("data", _STRING, _R, "SHA-256 of the rows behind the task"),
    _column("anchors", _STRING, _R, "id of the anchors' recipe, of several seeds joined by ','"),
    _column(
        "anchor_ids",
        _STRING,
        _R,
        "digests of target and retrained model, joined by ':', of several seeds by ','; chance for no such model",
    ),
    _column("samples", _STRING, _R, "id of the evaluation whose samples were scored; of both for split all"),
    _column("engine_version", _STRING, _R, "version of the engine"),
    _column("dtype", _STRING, _R, "dtype that the engine computed in"),
    _column(
        "batch_invariant", _BOOL, _R, "whether an answer is the same to the last bit whatever else is in the batch"
    ),
    _column("plugins", _STRING, _R, "canonical JSON of the packages of methods that are not Regrade's own; or null"),
    _column("source", _STRING, _O, "where the rows behind the task were read: hub data set and revision, or mirror"),
    _column("code", _STRING, _O, "digest of the suite's source"),
    _column("host", _STRING, _O, "machine that wrote the row"),
    _column("written_at", _STRING, _O, "UTC time of writing, ISO 8601"),
)

SAMPLES = _table(
    "samples",
    _column(
        "samples", _STRING, _K, "id of the evaluation: the stage key of (checkpoint, attack, point, probes, engine)"
    ),
    _column("probe", _STRING, _K, "question set"),
    _column("item", _STRING, _K, "id of the question"),
    _column("reference", _STRING, _R, "right answer, as scored"),
    _column("generated", _STRING, _R, "greedy text"),
    _column("token_logprobs", pa.list_(_FLOAT), _R, "log p of each reference token, nats"),
    _column("token_correct", pa.list_(_BOOL), _R, "whether the teacher-forced argmax is that token"),
    _column("choice_logprobs", pa.list_(_FLOAT), _R, "summed log p of each answer, nats"),
    _column("choice_lengths", pa.list_(_INT), _R, "tokens of each answer"),
    _column("correct", _INT, _R, "index of the right answer"),
    _column("vocab_means", pa.list_(_FLOAT), _R, "mean of log p over the vocabulary, nats"),
    _column("vocab_variances", pa.list_(_FLOAT), _R, "variance of log p over the vocabulary, nats^2"),
    _column("scalars", pa.map_(_STRING, _FLOAT), _R, "named numbers that only a model can give"),
    _column("sampled", pa.list_(_STRING), _R, "texts drawn at a temperature, where several were asked for"),
)

ITEMS = _table(
    "items",
    _column("samples", _STRING, _K, "id of the evaluation, as in the table samples"),
    _column("probe", _STRING, _K, "question set"),
    _column("metric", _STRING, _K, "metric and variant, a headline of the task"),
    _column("item", pa.list_(_STRING), _R, "ids of the questions, sorted"),
    _column("value", pa.list_(_FLOAT), _R, "the metric on each question, whose mean is the measurement"),
)

STEPS = _table(
    "steps",
    _column("trial", _STRING, _K, "id of the trial"),
    _column("request", _STRING, _K, "name of the forget request; all where there is one"),
    _column("step", pa.list_(_INT), _R, "steps of the run, from 1, in order"),
    _column("forget_loss", pa.list_(_FLOAT), _R, "weighted forget loss, the mean over what the step evaluated"),
    _column("retain_loss", pa.list_(_FLOAT), _R, "weighted retain loss, the same"),
    _column("gradient_norm", pa.list_(_FLOAT), _R, "L2 norm of the last gradient, or of the zeroth-order estimate"),
    _column("update_norm", pa.list_(_FLOAT), _R, "L2 norm of the change of the weights"),
    _column("lr", pa.list_(_FLOAT), _R, "step size; where two directions are mixed, that of the first-order one"),
    _column("value_queries", pa.list_(_INT), _R, "loss values and slopes that the optimizer asked for so far"),
    _column("gradient_queries", pa.list_(_INT), _R, "gradients so far"),
    _column("curvature_queries", pa.list_(_INT), _R, "curvature samples and Hessian products so far"),
    _column("seconds", pa.list_(_FLOAT), _O, "time since the run began"),
)

TABLES: dict[str, pa.Schema] = {
    "trials": TRIALS, "measurements": MEASUREMENTS, "samples": SAMPLES, "items": ITEMS, "steps": STEPS,
}  # fmt: skip


@cache
def columns(table: str, *roles: Role) -> list[str]:
    """Names of a table's columns with one of these roles, in schema order (all columns when no role is given)."""
    return [field.name for field in TABLES[table] if not roles or role(field) in roles]


def role(field: pa.Field) -> Role:
    return Role(field.metadata[b"role"].decode())


def to_arrow(table: str, rows: list[dict[str, Any]]) -> pa.Table:
    """Rows as an arrow table of the table's schema.

    Raises:
        ValueError: a row has a column that the schema lacks, or lacks a key column.
    """
    schema = TABLES[table]
    for row in rows:
        if unknown := row.keys() - set(schema.names):
            raise ValueError(f"{table}: no such column: {', '.join(sorted(unknown))}")
        if missing := [name for name in columns(table, Role.KEY) if row.get(name) is None]:
            raise ValueError(f"{table}: a row lacks its key column {', '.join(missing)}")
    return pa.Table.from_pylist(rows, schema=schema)
