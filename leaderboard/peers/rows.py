"""Writes an imported evaluation as rows of the board.

Ids are digests of the logs' content, so the same logs give the same rows wherever they are read. The rows have a task
name of their own, `open-unlearning/...`: a log does not say how its model was unlearned, and its questions and prompts
differ from ours, so the rows can be read but are never ranked with trials. The split is `all`; the engine is
`open-unlearning`, with everything unknown about it null. A retrained model's rows have their own id, like anchors'
rows, shared by all evaluations that were compared with it.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Iterator
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

from leaderboard.board.schema import Status
from leaderboard.board.store import Board
from leaderboard.peers import open_unlearning, tofu
from leaderboard.peers.answers import perturbed
from leaderboard.peers.examples import Model
from leaderboard.peers.line import Line
from leaderboard.peers.open_unlearning import Imported
from leaderboard.ranking.headlines import NONE
from tasks.task import Sample

PEER = open_unlearning.PEER
READ = {open_unlearning.PEER: open_unlearning.read, tofu.PEER: tofu.read}
"""How a log is scored, by its suite."""
FORGET_SETS = {40: "forget01", 200: "forget05", 300: "forget10", 400: "forget10"}
"""TOFU's forget sets by their number of questions, which is all that a log reveals about them. Its own code asks 300 at
most."""

COLUMNS = tuple(one.name for one in fields(Sample))

Row = dict[str, Any]


def add(board: Board, imported: Imported) -> str:
    """Add an evaluation to the board; existing rows stay as they are.

    Returns:
        The id of its row in `trials`.

    Raises:
        BoardError: the board cannot be written.
    """
    model, retrained = imported.model, imported.retrained
    about = {"peer": model.log.peer, "log": model.log.digest, "retrained": retrained.log.digest if retrained else None}
    trial, task = _digest(about), _task(model)
    anchors = _digest({"peer": model.log.peer, "retrained": retrained.log.digest}) if retrained else None
    shared = {"task": task, "anchors": anchors, "host": platform.node(), "written_at": _now()}
    rows = list(_measurements(imported.lines, model, trial, "unlearned", shared))
    board.append("samples", _samples(model))
    if retrained and anchors:
        board.append("samples", _samples(retrained))
        rows += _measurements(READ[retrained.log.peer](retrained.log).lines, retrained, anchors, "retrained", shared)
    board.append("measurements", rows)
    row = {
        "trial": trial,
        "entry": trial,
        "status": str(Status.OK),
        "spec": json.dumps(about, sort_keys=True),
        "source": _place(model),
        **shared,
    }
    board.append("trials", [row])
    return trial


def _measurements(lines: Iterable[Line], model: Model, trial: str, subject: str, shared: Row) -> Iterator[Row]:
    for line in lines:
        if not line.ours.known and line.published is None:  # there is no number at all
            continue
        yield {
            "trial": trial,
            "subject": subject,
            "attack": NONE,
            "point": 0,
            "probe": line.probe,
            "subset": str(line.subset),
            "split": "all",
            "matching": "raw",
            "engine": model.log.peer,
            "metric": line.metric,
            "value": line.ours.value,
            "stderr": line.ours.stderr,
            "n": line.ours.n,
            "direction": "up" if line.up else "down",
            "status": str(Status.OK if line.ours.known else Status.NULL),
            "reason": line.ours.reason,
            "samples": model.log.digest,
            "source": _place(model),
            **shared,
        }


def _samples(model: Model) -> list[Row]:
    return [
        {"samples": model.log.digest, "probe": probe, **_columns(sample), "scalars": list(sample.scalars) or None}
        for probe, samples in {**model.samples, **perturbed(model.log)}.items()
        for sample in samples
    ]


def _columns(sample: Sample) -> Row:
    """A sample's fields as they are: `asdict` copies every number of half a million samples."""
    return {name: getattr(sample, name) for name in COLUMNS}


def _task(model: Model) -> str:
    benchmark = model.log.benchmark.lower()
    forget_set = FORGET_SETS.get(len(model.probe("forget_qa"))) if benchmark == "tofu" else None
    return "/".join(filter(None, (model.log.peer, benchmark, forget_set)))


def _place(model: Model) -> str:
    """The last parts of the path of the log's folder, which usually name the model."""
    return "/".join(model.log.file.absolute().parent.parts[-2:])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
