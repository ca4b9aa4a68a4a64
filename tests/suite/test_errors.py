"""Errors by kind: what happened, who has to do what, and the code that the command ends with."""

from __future__ import annotations

import ast
import builtins
import errno
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import pytest
import yaml

from leaderboard.board.files import BoardError
from leaderboard.board.store import Board
from leaderboard.ranking.compare import NotCompared, compare
from leaderboard.storage import DiskFull, FolderStorage, NotWritable, StorageError, replace_file
from suite.attacks import attack
from suite.cluster.connection import connected
from suite.cluster.placement import PoolResources, Resources, plan_placement
from suite.config.errors import (
    CheckpointError,
    ClusterError,
    EngineError,
    MissingError,
    ModelError,
    NotInstalledError,
    RegradeError,
    RequestError,
    SpecError,
    StageError,
    UnsuitableError,
)
from suite.config.runtime import RuntimeSpec
from suite.engines.vllm import build as vllm_build
from suite.models.named_folder import model_folder
from suite.models.weight_files import weight_files
from suite.runners.base import Outcome
from suite.runners.search import search_here, some_trial
from suite.spec.measure import MeasureSpec
from suite.spec.search_space import Plan, plan
from suite.spec.trial import trial
from suite.spec.yaml_file import load_file
from suite.storage.stages import StageStore
from suite.storage.store import Store
from suite.training.anchors import named_checkpoints
from suite.trials.preflight import preflight
from tasks import TASKS
from tasks.task import MissingDataError, TaskError
from tests.support.command import regrade
from tests.support.small import SMALL

ROOT = Path(__file__).parents[2]
RELEARN = {"name": "relearn", "samples": 2, "steps": 1, "lr": 1e-3}
NF4 = {"name": "nf4"}


@pytest.fixture(autouse=True)
def nothing_is_here(monkeypatch, tmp_path):
    """No data, no bitsandbytes, no vLLM, and the hub is not asked."""
    monkeypatch.setenv("REGRADE_DATA", str(tmp_path))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr("suite.attacks.weights.bitsandbytes_formats.find_spec", lambda name: None)
    monkeypatch.setattr(vllm_build, "build", lambda: None)


def checked(*attacks: dict, trials: int = 1, **changes) -> None:
    specs = [trial({**SMALL, **changes, "seed": seed}) for seed in range(trials)]
    preflight(specs, MeasureSpec(attacks=attacks, limit=2, match=None), RuntimeSpec())


def folder(here: Path, **files: str) -> str:
    (here / "model").mkdir()
    for name, text in files.items():
        (here / "model" / f"{name}.json").write_text(text)
    return str(here / "model")


def spec_file(here: Path, **changes) -> Path:
    file = here / "spec.yaml"
    file.write_text(yaml.safe_dump({**SMALL, **changes}))
    return file


def own_task(here: Path, *forget: str) -> None:
    (here / "custom" / "own").mkdir(parents=True)
    for subset in ("forget", "retain"):
        (here / "custom" / "own" / f"{subset}.jsonl").write_text("".join(forget))
    TASKS["custom/own"].build()


def join(address: str) -> None:
    with connected(address):
        pass


def damaged_stage(here: Path) -> None:
    store = StageStore(here / "store")
    kept = store.run("kind", {}, lambda at: (at / "x").write_bytes(b"12") and {})
    kept.file("x").write_bytes(b"1")
    store.get("kind", kept.key)


def system_error(number: int, here: Path) -> None:
    def write(path: Path) -> None:
        raise OSError(number, os.strerror(number))

    replace_file(here / "page.html", write)


@dataclass
class Situation:
    happens: Callable[[Path], object]
    kind: type[RegradeError]
    code: int


SITUATIONS = {
    "an unknown key": Situation(lambda here: trial({**SMALL, "sead": 1}), SpecError, 2),
    "an unknown method": Situation(lambda here: trial({**SMALL, "optimizer": "adan"}), SpecError, 2),
    "an unknown attack": Situation(lambda here: attack({"name": "relern"}), SpecError, 2),
    "settings that contradict each other": Situation(
        lambda here: checked(smoothing={"name": "ema", "start": 4}), SpecError, 2
    ),
    "a file that is no mapping": Situation(
        lambda here: load_file(Path(folder(here, spec="- 1")) / "spec.json"), SpecError, 2
    ),
    "a file that is a folder": Situation(lambda here: load_file(here), SpecError, 2),
    "an address that is none": Situation(lambda here: join("head"), SpecError, 2),
    "a store at an address": Situation(lambda here: Store("s3://bucket/store"), SpecError, 2),
    "a batch larger than the task": Situation(lambda here: checked(batch_size=10_000), UnsuitableError, 2),
    "more texts than there are": Situation(lambda here: checked({**RELEARN, "samples": 10**6}), UnsuitableError, 2),
    "a layer that there is not": Situation(
        lambda here: checked({"name": "logit_lens", "layers": [99]}), UnsuitableError, 2
    ),
    "a pattern that matches nothing": Situation(lambda here: checked(trainable=["nothing"]), UnsuitableError, 2),
    "a model that was not published for a task": Situation(
        lambda here: named_checkpoints(
            trial({**SMALL, "task": "tofu/forget01", "model": {"name": "a"}, "anchors": {"source": "published"}})
        ),
        UnsuitableError,
        2,
    ),
    "no such spec": Situation(lambda here: load_file(here / "nowhere.yaml"), MissingError, 2),
    "a spec below a file": Situation(lambda here: load_file(spec_file(here) / "x.yaml"), MissingError, 2),
    "a folder that a spec names": Situation(
        lambda here: load_file(spec_file(here), ["model.name=./nowhere"]), MissingError, 2
    ),
    "no such model folder": Situation(lambda here: checked(model={"name": "/nowhere"}), MissingError, 2),
    "a folder without a model": Situation(lambda here: checked(model={"name": folder(here)}), MissingError, 2),
    "a model that the hub does not give": Situation(
        lambda here: checked(model={"name": "nobody/nothing"}), MissingError, 2
    ),
    "no data": Situation(lambda here: TASKS["tofu/forget01"].build(), MissingDataError, 2),
    "data on request": Situation(lambda here: TASKS["wmdp/bio"].build().forget_examples(), MissingDataError, 2),
    "no such task of one's own": Situation(lambda here: TASKS["custom/none"].build(), MissingDataError, 2),
    "half a task of one's own": Situation(
        lambda here: ((here / "custom" / "own").mkdir(parents=True), TASKS["custom/own"].build()), MissingDataError, 2
    ),
    "no data of an attack's": Situation(
        lambda here: checked({**RELEARN, "texts": "tofu/forget01"}), MissingDataError, 2
    ),
    "a row without its question": Situation(lambda here: own_task(here, '{"answer": "x"}\n' * 2), TaskError, 2),
    "rows that are no JSON": Situation(lambda here: own_task(here, "{\n"), TaskError, 2),
    "a package of an attack": Situation(lambda here: checked(NF4), NotInstalledError, 2),
    "a package of an optimizer": Situation(
        lambda here: checked(optimizer={"name": "adam8bit", "lr": 0.1}), NotInstalledError, 2
    ),
    "an engine that is not installed": Situation(
        lambda here: preflight([trial(SMALL)], MeasureSpec(engine="vllm"), RuntimeSpec()), NotInstalledError, 2
    ),
    "a config that is no JSON": Situation(
        lambda here: checked(model={"name": folder(here, config="{")}), ModelError, 2
    ),
    "a config that wants code": Situation(
        lambda here: checked(model={"name": folder(here, config=json.dumps({"model_type": "its_own"}))}), ModelError, 2
    ),
    "a link that leads nowhere": Situation(
        lambda here: ((here / "config.json").symlink_to("nowhere"), model_folder(str(here), "model.name")),
        ModelError,
        2,
    ),
    "no cluster": Situation(lambda here: join("127.0.0.1:1"), ClusterError, 2),
    "no room for a trial": Situation(
        lambda here: plan_placement(Resources(1, 0), PoolResources(0), RuntimeSpec(threads=2)), ClusterError, 2
    ),
    "no room for engines": Situation(
        lambda here: plan_placement(Resources(4, 1), PoolResources(2, 1, 1, 1), RuntimeSpec()), ClusterError, 2
    ),
    "a store below a file": Situation(lambda here: Store(spec_file(here) / "store"), NotWritable, 2),
    "a page below a file": Situation(
        lambda here: replace_file(spec_file(here) / "page.html", lambda at: at.write_text("")), NotWritable, 2
    ),
    "a disk that is full": Situation(partial(system_error, errno.ENOSPC), DiskFull, 1),
    "a disk that fails": Situation(partial(system_error, errno.EIO), StorageError, 1),
    "a file in a folder's place": Situation(
        lambda here: FolderStorage(spec_file(here)).put_if_absent("a/b", b""), NotWritable, 2
    ),
    "a damaged stage": Situation(damaged_stage, StageError, 1),
    "no weights": Situation(lambda here: weight_files(here), CheckpointError, 1),
    "a query that is none": Situation(lambda here: Board(here).sql("DROP TABLE trials"), BoardError, 1),
    "an entry that is not there": Situation(
        lambda here: compare(Board(here), "pocket", "test", ["adam", "sgd"]), NotCompared, 2
    ),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_what_happened_has_its_kind_and_its_exit_code(name, tmp_path):
    situation = SITUATIONS[name]
    with pytest.raises(RegradeError) as raised:
        situation.happens(tmp_path)
    assert type(raised.value) is situation.kind, raised.value
    assert raised.value.exit_code == situation.code
    assert isinstance(raised.value, RequestError | NotWritable) == (situation.code == 2)


def test_every_kind_has_a_situation():
    engine = {EngineError}  # below: nothing that can be asked for here makes one fail
    assert {s.kind for s in SITUATIONS.values()} == set(kinds()) - {RegradeError, RequestError} - engine


def test_an_engine_that_does_not_start_is_no_wrong_request(monkeypatch):
    import ray

    def fails(*args, **settings):
        raise RuntimeError("no shared memory")

    monkeypatch.setattr(ray, "init", fails)
    with pytest.raises(EngineError, match="no shared memory") as raised, connected(None):
        pass
    assert raised.value.exit_code == 1


COMMANDS: dict[str, tuple[tuple[object, ...], int]] = {
    "an unknown option": (("run", "SPEC", "--stor", "x"), 2),
    "an unknown key": (("run", "SPEC", "sead=1"), 2),
    "no such spec": (("run", "nowhere.yaml"), 2),
    "no such model": (("run", "SPEC", "model.name=/nowhere"), 2),
    "a model that the hub does not give": (("validate", "SPEC", "model.name=nobody/nothing"), 2),
    "no data": (("sweep", "SPEC", "task=tofu/forget01"), 2),
    "a package": (("validate", "SPEC", "optimizer={name: adam8bit, lr: 0.1}"), 2),
    "an engine": (("run", "SPEC", "--engine", "vllm"), 2),
    "no board": (("board", "show"), 2),
    "no trials": (("board", "show", "--store", "EMPTY"), 2),
    "no trials of a report": (("report", "--store", "EMPTY"), 2),
    "entries that are not there": (("board", "compare", "adam", "sgd", "--store", "EMPTY"), 2),
    "a page in a folder that is a file": (("board", "page", "--store", "EMPTY", "--out", "SPEC/page.html"), 2),
    "no log": (("import", "tofu", "nowhere"), 2),
    "a model without weights": (("eval", "WEIGHTLESS", "--task", "pocket"), 1),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_ends_with_the_code_of_the_kind(name, tmp_path):
    words, code = COMMANDS[name]
    (tmp_path / "empty" / "board").mkdir(parents=True)
    places = {"SPEC": str(spec_file(tmp_path)), "EMPTY": str(tmp_path / "empty"), "WEIGHTLESS": str(tmp_path / "model")}
    if "WEIGHTLESS" in words:
        from transformers import LlamaConfig

        LlamaConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=300).save_pretrained(
            tmp_path / "model"
        )
    said = regrade(*(re.sub("|".join(places), lambda w: places[w[0]], str(w)) for w in words), code=code, cwd=tmp_path)
    assert said.stderr and "Traceback" not in said.stderr


def test_a_cluster_that_does_not_answer_ends_a_sweep_with_its_code(tmp_path):
    """In a process of its own: it forks."""
    words = ["sweep", spec_file(tmp_path), "--runner", "ray", "--address", "127.0.0.1:1", "--store", tmp_path / "store"]
    call = [sys.executable, "-c", "from suite.cli import main; main()", *map(str, words)]
    done = subprocess.run(call, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("regrade: --address 127.0.0.1:1: no Ray cluster answers there")


def test_an_error_that_is_none_of_ours_keeps_its_traceback(monkeypatch, tmp_path):
    monkeypatch.setattr("suite.spec.yaml_file.load_file", lambda *args: {}["a bug"])
    with pytest.raises(KeyError, match="a bug"):
        regrade("run", spec_file(tmp_path), "--store", tmp_path / "store")


@pytest.mark.parametrize(
    ("changes", "kind", "begins"),
    [
        ({"model": {"name": "/nowhere"}}, MissingError, "model.name: /nowhere: no such folder"),
        ({"task": "tofu/forget01"}, MissingDataError, ""),
        ({"batch_size": 10_000}, UnsuitableError, "batch_size: 10000"),
        ({"optimizer": {"name": "adam8bit", "lr": 0.1}}, NotInstalledError, "optimizer.name: adam8bit"),
    ],
)
def test_the_kind_stays_where_the_trial_is_named(changes, kind, begins):
    with pytest.raises(kind, match=rf"^{re.escape(begins)}.*\(in the trial .*\)$") as raised:
        checked(trials=2, **changes)
    assert type(raised.value) is kind


def test_the_kind_stays_where_the_attack_is_named():
    with pytest.raises(NotInstalledError, match=r"^measure\.attacks: nf4 is bitsandbytes' own.* \(nf4\)$"):
        checked(NF4)
    with pytest.raises(MissingDataError, match=r"^measure\.attacks: texts=tofu/forget01: .* \(relearn\["):
        checked({**RELEARN, "texts": "tofu/forget01"})


def test_the_kind_stays_where_the_folder_is_named(tmp_path):
    named = folder(tmp_path)
    (tmp_path / "model" / "config.json").symlink_to("nowhere")
    with pytest.raises(ModelError, match=r"^model\.name: .*config\.json: is a link that leads nowhere"):
        checked(model={"name": named})


def searched(*optimizers: str) -> Plan:
    space = {"optimizer.name": list(optimizers), "smoothing.name": ["sam"]}
    return plan({**SMALL, "search": {"space": space, "trials": 4}})


def test_only_an_invalid_draw_is_refused_in_a_search():
    """Sharpness is in gradients, which zo_sgd never asks for; what is missing is so for every draw."""

    def not_installed(spec):
        raise NotInstalledError("measure.engine: vllm is not installed")

    outcomes: list[Outcome] = []
    search_here(searched("zo_sgd"), not_installed, outcomes.append, lambda job, stage: None)
    assert [outcome.status for outcome in outcomes] == ["refused"] * 4
    assert all("sam" in outcome.reason for outcome in outcomes)
    with pytest.raises(SpecError, match="none of 100 draws is a valid trial"):
        some_trial(searched("zo_sgd"))
    with pytest.raises(NotInstalledError):
        search_here(searched("adam"), not_installed, outcomes.append, lambda job, stage: None)
    assert len(outcomes) == 4


# Every class.


def classes() -> Iterator[tuple[Path, ast.ClassDef]]:
    for package in ("suite", "tasks", "leaderboard"):
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ClassDef):
                    yield file, node


@cache
def errors() -> dict[str, tuple[Path, ast.ClassDef]]:
    """Every class of ours that can be raised, by its name, read without importing anything: vLLM may be missing."""
    raised = {n for n, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException)}
    everything, found = list(classes()), dict[str, tuple[Path, ast.ClassDef]]()
    while True:
        new = {
            node.name: (file, node)
            for file, node in everything
            if node.name not in found and {getattr(base, "id", "") for base in node.bases} & (raised | found.keys())
        }
        if not new:
            return found
        found |= new


def kinds(kind: type[RegradeError] = RegradeError) -> Iterator[type[RegradeError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from kinds(below)


@pytest.mark.parametrize("name", sorted(errors()))
def test_every_error_says_what_happened_and_has_an_exit_code_or_is_internal(name):
    file, node = errors()[name]
    said = ast.get_docstring(node)
    assert said and said.endswith("."), file
    if name.startswith("_") or "Internal" in said:
        return
    kind = getattr(importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts)), name)
    assert issubclass(kind, RegradeError), f"{file}: {name} has no exit code, and is not said to be internal"
    assert kind.exit_code in (1, 2)


def test_the_table_of_kinds_is_that_of_the_classes():
    page = (ROOT / "docs" / "extending.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `([\w.]+)` \| .* \| ([12]) \|$", page, re.M)
    assert {(name, int(code)) for name, _, code in rows} == {(kind.__name__, kind.exit_code) for kind in kinds()}
    for name, module, _ in rows:
        assert issubclass(getattr(importlib.import_module(module), name), RegradeError)
