"""`regrade doctor`: what this machine can do."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from suite.cli.common import STORE, Json, StoreDir, print_json, table


def doctor(store: StoreDir = STORE, as_json: Json = False) -> None:
    """Say what this machine has: Python, torch and devices, engines, Ray, data, and the state of a store."""
    from suite.storage.location import store_folder

    rows = _findings(store_folder(store))
    if as_json:
        print_json({name: {"found": found, "note": note} for name, found, note in rows})
    else:
        table("this machine", ["", "", ""], [[name, found, note] for name, found, note in rows])


def _findings(store: Path) -> list[tuple[str, str, str]]:
    import torch

    from suite.engines import ENGINES

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    rows = [
        ("python", platform.python_version(), ""),
        ("cpus", str(os.cpu_count()), torch.backends.cpu.get_cpu_capability()),
        ("torch", torch.__version__, f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"),
        ("gpus", str(len(gpus)), ", ".join(gpus) or "none: trials run on the CPU"),
    ]
    notes = {
        "ray": "regrade sweep --runner ray",
        "optuna": "regrade sweep --search optuna",
        "datasets": "tasks from the hub or from a mirror",
    }
    rows += [(name, _version(name), note) for name, note in notes.items()]
    rows += [(name, *kind.finding()) for name, kind in ENGINES.items()]
    rows += _plugins()
    data = os.environ.get("REGRADE_DATA")
    state = "there" if data and os.path.isdir(os.path.expanduser(data)) else "no such folder: set or unset it"
    rows.append(("REGRADE_DATA", data or "unset", state if data else "data sets come from the hub"))
    offline = os.environ.get("HF_HUB_OFFLINE")
    rows.append(("HF_HUB_OFFLINE", offline or "unset", "the hub is not used" if offline == "1" else ""))
    rows.append(("disk", f"{shutil.disk_usage(store if store.is_dir() else Path.cwd()).free / 2**30:.0f} GiB", "free"))
    if store.is_dir():
        rows += _store_findings(store)
    return rows


def _plugins() -> list[tuple[str, str, str]]:
    """A row for each method that another package adds, or cannot."""
    from tasks.plugins import added

    for room in ("suite.evaluation.landscape", "suite.spec.measure", "suite.spec.trial", "tasks.scoring"):
        import_module(room)  # with these, all registries are there
    return [(one.name, one.package, one.problem or f"{one.noun} of another package") for one in added()]


def _store_findings(store: Path) -> list[tuple[str, str, str]]:
    from leaderboard.board.store import Board
    from suite.storage.stages import StageStore

    damaged = [*map(str, Board(store / "board").broken()), *StageStore(store).damaged()]
    rows = [("store", "damaged", note) for note in damaged] or [("store", "sound", str(store))]
    return [*rows, _hard_links(store)]


def _hard_links(store: Path) -> tuple[str, str, str]:
    """Whether the store's file system has hard links, without which results cannot be stored."""
    from leaderboard.storage import NO_HARD_LINKS, StorageError, has_hard_links

    try:
        supported = has_hard_links(store)
    except StorageError as error:
        return "hard links", "–", str(error)
    return ("hard links", "yes", "the store can be written to") if supported else ("hard links", "no", NO_HARD_LINKS)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "–"
