"""An imported evaluation as rows of the board.

Ids are digests of what the logs say, so the same logs are the same rows from wherever they are read. Such rows stand
under a task name of their own, `open-unlearning/...`: who was unlearned how is not in a log, and other questions were
asked in another way, so they are there to be read and never ranked with trials. The split is `all`; the engine is
`open-unlearning`, with everything unknown about it null. A retrained model's rows stand under its own id, as anchors'
rows do, for all evaluations that were compared with it.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from leaderboard.board.schema import Status
from leaderboard.board.store import Board
from leaderboard.peers.examples import Model
from leaderboard.peers.line import Line
from leaderboard.peers.open_unlearning import Imported, read
from leaderboard.ranking.headlines import NONE

PEER = "open-unlearning"
FORGET_SETS = {40: "forget01", 200: "forget05", 400: "forget10"}
"""TOFU's forget sets by their number of questions, which is all that a log says of them."""

Row = dict[str, Any]


def add(board: Board, imported: Imported) -> str:
    """Put an evaluation on the board; what is there already stays as it is.

    Returns:
        The id of its row in `trials`.

    Raises:
        BoardError: the board cannot be written.
    """
    model, retrained = imported.model, imported.retrained
    about = {"peer": PEER, "log": model.log.digest, "retrained": retrained.log.digest if retrained else None}
    trial, task = _digest(about), _task(model)
    anchors = _digest({"peer": PEER, "retrained": retrained.log.digest}) if retrained else None
    shared = {"task": task, "anchors": anchors, "host": platform.node(), "written_at": _now()}
    rows = list(_measurements(imported.lines, model, trial, "unlearned", shared))
    board.append("samples", _samples(model))
    if retrained:
        board.append("samples", _samples(retrained))
        rows += _measurements(read(retrained.log).lines, retrained, anchors, "retrained", shared)
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
        if not line.ours.known and line.published is None:  # neither has anything to say
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
            "engine": PEER,
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
        {"samples": model.log.digest, "probe": probe, **asdict(sample), "scalars": list(sample.scalars) or None}
        for probe, samples in model.samples.items()
        for sample in samples
    ]


def _task(model: Model) -> str:
    benchmark = model.log.benchmark.lower()
    asked = FORGET_SETS.get(len(model.probe("forget_qa"))) if benchmark == "tofu" else None
    return "/".join(filter(None, (PEER, benchmark, asked)))


def _place(model: Model) -> str:
    """The log's folder, as far as it may say which model it is of."""
    return "/".join(model.log.file.absolute().parent.parts[-2:])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
