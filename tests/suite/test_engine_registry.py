"""Engines are a registry: one that somebody adds is chosen in a spec, has settings of its own, and gives its rows."""

from __future__ import annotations

import ast
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch
import yaml

from leaderboard.board.store import Board
from suite.cluster.placement import PoolResources, Resources, plan_placement
from suite.config.errors import ClusterError, NotInstalledError, SpecError
from suite.config.runtime import RuntimeSpec
from suite.config.settings import Settings as NamedSettings
from suite.config.settings import parse
from suite.engines import ENGINES
from suite.engines import settings as engine_settings
from suite.engines.base import RESERVED
from suite.engines.choosing import check_heads, check_here, chosen_engine, pool_resources
from suite.engines.settings import EngineSettings
from suite.engines.transformers.engine import TransformersEngine
from suite.engines.vllm import build as vllm_build
from suite.engines.vllm.build import Build
from suite.engines.vllm.settings import VllmSettings
from suite.models.checkpoints import Heads
from suite.models.encoding import Encoder
from suite.spec.measure import MeasureSpec
from suite.spec.search_space import plan
from suite.spec.trial import trial
from suite.storage.store import Store
from suite.training.anchors import prepare_anchors
from tasks import TASKS
from tests.support.added_engine import Patient
from tests.support.command import regrade
from tests.support.small import SMALL

ROOT = Path(__file__).parents[2]


WRONG = {
    "measure.engine=patent": "measure.engine: unknown: patent. Did you mean patient? "
    "(allowed: transformers, vllm, transformers-eos-masked, patient)",
    "measure.patient.position=3": "measure.patient.position: unknown key. Did you mean measure.patient.positions?",
    "measure.patient.positions=0": "measure.patient.positions: must be at least 1, not 0",
    "measure.patient.name=patient": "measure.patient.name: unknown key",
    "measure.patient=3": "measure.patient: a section is expected",
    "measure.landscape=[larges]": "measure.landscape: larges: no such diagnostic. Did you mean largest? "
    "(allowed: barrier, sharpness, distance, largest)",
    "--engine=patients": "measure.engine: unknown: patients. Did you mean patient?",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("added") / "store"


@pytest.fixture(scope="module")
def said(store, warm_store) -> dict[str, tuple[int, str, str]]:
    """Exit code, standard output and error of commands where the engine `patient` is installed, in one process."""
    spec = store.with_name("small.yaml")
    anchors = prepare_anchors(trial(SMALL), TASKS["pocket"].build(), Store(warm_store).stages, RuntimeSpec())
    target = anchors.target.checkpoint.architecture
    measure = {"attacks": [{"name": "rtn", "bits": 4}], "limit": 6, "match": None}
    spec.write_text(yaml.safe_dump({**SMALL, "measure": measure}))
    run = ["run", str(spec), "--store", str(store)]
    calls = {
        "plain": run,
        "first": [*run, "--engine", "patient", "measure.patient.positions=32"],
        "again": [*run, "measure.engine=patient", "measure.patient.positions=32"],
        "other": [*run, "measure.engine=patient", "--json"],
        "landscape": [*run, "measure.engine=patient", "measure.landscape=[largest]"],
        "cross-check": [
            "eval",
            str(target),
            *"--task pocket --template bare --cross-check --engine patient --limit 2 --json".split(),
        ],
        "ls": ["ls", "engines", "--json"],
        "doctor": ["doctor", "--json"],
    } | {words: ["validate", str(spec), words] for words in WRONG}
    call = [sys.executable, "-m", "tests.support.added_engine", json.dumps(list(calls.values()))]
    done = subprocess.run(call, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return dict(zip(calls, map(json.loads, done.stdout.splitlines()), strict=True))


def test_an_added_engine_measures_a_trial_from_its_spec_to_its_rows(said, store):
    assert [said[name][0] for name in ("plain", "first")] == [0, 0]
    rows = Board(store / "board").read("measurements").to_pylist()
    assert {row["engine"] for row in rows} == {"transformers-float32", "patient32-float32", "patient64-float32"}
    names = ("trial", "anchor_ids", "subject", "attack", "point", "split", "probe", "subset", "metric", "matching")
    by_engine: dict[str, dict[tuple[str, ...], float | None]] = {}
    for row in rows:
        by_engine.setdefault(row["engine"], {})[tuple(str(row[name]) for name in names)] = row["value"]
    ours, theirs = by_engine["transformers-float32"], by_engine["patient32-float32"]
    assert len(ours) > 20
    assert ours.keys() == theirs.keys()
    assert len({row["attack"] for row in rows}) == 2
    # The same model with other batches: log-probabilities differ in their last bits.
    likely = {key: value for key, value in ours.items() if "probability" in key and value is not None}
    assert likely
    assert {key: theirs[key] for key in likely} == pytest.approx(likely, abs=1e-3)


def test_an_added_diagnostic_is_read_in_a_trial(said, store):
    assert said["landscape"][0] == 0, said["landscape"]
    (row,) = [row for row in Board(store / "board").read("measurements").to_pylist() if row["probe"] == "landscape"]
    assert (row["metric"], row["subset"]) == ("largest_weight", "all")
    assert row["value"] > 0


def test_an_added_engine_is_cross_checked(said):
    code, out, err = said["cross-check"]
    assert code == 0, err
    found = json.loads(out)
    assert sum(one["n"] for one in found) > 10
    assert all(one["parted"] == 0 for one in found)


def test_its_settings_are_what_its_numbers_depend_on(said):
    """The same settings compute nothing anew, others do: `identity` has what the engine makes of them."""
    assert "no stage computed" in said["again"][1]
    assert set(json.loads(said["other"][1])["computed"]) == {"samples"}


@pytest.mark.parametrize("words", WRONG)
def test_what_is_wrong_about_an_added_engine_is_said(said, words):
    code, out, err = said[words]
    assert (code, out) == (2, "")
    assert WRONG[words] in err


def test_ls_and_doctor_list_every_engine(said):
    rows = json.loads(said["ls"][1])
    assert rows[-1] == {"name": "patient", "summary": "transformers, with passes of a few positions at a time."}
    assert [row["name"] for row in rows[:-1]] == list(ENGINES)
    assert json.loads(regrade("ls", "engines", "--json").stdout) == rows[:-1]
    found = json.loads(said["doctor"][1])
    assert found["patient"]["note"] == "measure.engine=patient"
    assert found["transformers"]["note"] == "measure.engine=transformers, the engine by default"
    assert set(ENGINES) < set(found)


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("vlm", "unknown: vlm. Did you mean vllm? (allowed: transformers, vllm, transformers-eos-masked)"),
        ("Transformers", "Did you mean transformers?"),
        ("patient", "(allowed: transformers, vllm, transformers-eos-masked)"),
        ("x" * 10_000, "unknown: "),
        ("a\nb\x1b[31m", "unknown: "),
        ("", "the name of an engine is expected"),
        (None, "the name of an engine is expected, not null"),
        (3, "the name of an engine is expected, not 3"),
        (True, "the name of an engine is expected, not true"),
        ({"name": "vllm"}, "the name of an engine is expected"),
        (["vllm"], "the name of an engine is expected"),
    ],
)
def test_an_engine_that_there_is_not_is_refused_in_a_sentence(engine, message):
    with pytest.raises(SpecError) as refused:
        plan({**SMALL, "measure": {"engine": engine}})
    said = str(refused.value)
    assert said.startswith("measure.engine: ")
    assert message in said
    assert len(said) < 400 and said.isprintable()


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_engines_are_chosen_as_ever(name):
    spec = parse(MeasureSpec, {"engine": name}, "measure.")
    assert spec.changed() == ({} if name == "transformers" else {"engine": name})
    given = parse(MeasureSpec, {"engine": name, "vllm": {"engines": 2}, "batch_tokens": 512}, "measure.")
    changed = {"batch_tokens": 512, "vllm": {"engines": 2}}
    assert given.changed() == changed | spec.changed()
    assert MeasureSpec(engine=name, vllm=VllmSettings(engines=2), batch_tokens=512) == given
    assert pickle.loads(pickle.dumps(given)) == given


def test_names_and_identities_are_those_of_before():
    """They are part of stage keys and of rows."""
    for engine, name in (
        ("transformers", "transformers-bfloat16"),
        ("transformers-eos-masked", "transformers-bfloat16-eos-masked"),
    ):
        found = _built(engine, batch_tokens=77)
        identity = {"engine": name, "version": found.version, "revision": 2, "batch_tokens": 77}
        assert (found.name, found.identity()) == (name, identity)


def test_vllm_is_what_it_was_before(monkeypatch):
    monkeypatch.setattr(vllm_build, "installed", lambda: Build("vllm", "0.32.0", gpu=True))
    from suite.engines.vllm import engine as vllm_engine

    monkeypatch.setattr(vllm_engine, "installed", lambda: Build("vllm", "0.32.0", gpu=True))
    settings = {"tensor_parallel": 2, "batch_invariant": True, "engines": 3}
    found = _built("vllm", vllm=VllmSettings(**settings), batch_tokens=77)
    assert found.name == "vllm-bfloat16-invariant"
    assert found.identity() == {
        "engine": "vllm-bfloat16-invariant",
        "version": "0.32.0",
        "revision": 2,
        "gpu": True,
        "tensor_parallel": 2,
        "likelihoods": _built("transformers", batch_tokens=77).identity(),
    }
    measure = MeasureSpec(engine="vllm", vllm=VllmSettings(**settings))
    pool = pool_resources(measure)
    assert (pool.engines, pool.gpus, pool.threads, pool.cpus) == (3, 2, 1, 1)
    with pytest.raises(SpecError, match=r"^measure\.vllm\.tensor_parallel: 2 does not divide the model's 3 heads"):
        check_heads(measure, Heads(64, 3), "model.name")
    with pytest.raises(ClusterError, match=r"^measure\.vllm: trials and .* Take fewer measure\.vllm\.engines, runtime"):
        plan_placement(Resources(4, 2), pool, RuntimeSpec())


def _built(engine: str, **settings):
    class NoText(Encoder):
        def __init__(self) -> None: ...

    return chosen_engine(
        EngineSettings(engine=engine, **settings), NoText(), dtype="bfloat16", device=torch.device("cpu")
    )


def test_an_engine_that_is_not_installed_says_so_before_anything_runs(monkeypatch):
    monkeypatch.setattr(vllm_build, "build", lambda: None)
    with pytest.raises(NotInstalledError, match=r"^measure\.engine: vllm is not installed"):
        check_here(MeasureSpec(engine="vllm"), RuntimeSpec())
    monkeypatch.setattr(vllm_build, "build", lambda: Build("vllm", "0.32.0", True, unfit="torch sees no GPU"))
    with pytest.raises(NotInstalledError, match=r"^measure\.engine: vllm 0\.32\.0 cannot be used: torch sees no GPU"):
        check_here(MeasureSpec(engine="vllm"), RuntimeSpec())


def test_an_engine_without_a_pool_needs_nothing_beside_the_trials():
    assert pool_resources(MeasureSpec()).engines == 0
    assert check_here(MeasureSpec(), RuntimeSpec(threads=999, device="cpu")).trials == 1
    check_heads(MeasureSpec(), Heads(7, 3), "model.name")


def test_a_pool_is_refused_by_the_name_of_its_own_setting():
    for setting, section, fewer in (
        ("", "measure.engine", "Take runtime.device=cpu"),
        ("measure.other.servers", "measure.other", "Take fewer measure.other.servers, runtime.device=cpu"),
    ):
        with pytest.raises(ClusterError) as refused:
            plan_placement(Resources(1, 0), PoolResources(1, 0, 1, 1, setting), RuntimeSpec())
        assert str(refused.value).startswith(f"{section}: trials and engines do not fit together")
        assert fewer in str(refused.value)


@pytest.mark.parametrize(
    "name", ["engine", "batch_tokens", "changed", "model_fields", "a.b", "_own", "A", "ü", "1st", ""]
)
def test_settings_that_could_not_stand_in_a_section_of_their_own_are_refused(name):
    with pytest.raises(SpecError, match=r"Name it otherwise"):
        engine_settings._section(name, Patient.Settings)


def test_a_section_that_would_hide_a_setting_is_refused():
    with pytest.raises(SpecError, match="engine vllm: has settings, and vllm is another setting here"):

        class Other(EngineSettings):
            vllm: int = 3


def test_an_engine_that_derives_from_another_has_a_name_of_its_own_in_rows():
    class Quick(TransformersEngine):
        """Quicker."""

        class Settings(NamedSettings):
            name: Literal["quick"] = "quick"

    class NoText(Encoder):
        def __init__(self) -> None: ...

    built = Quick.build(EngineSettings(), NoText(), dtype="float16", device=torch.device("cpu"))
    assert (type(built), built.name) == (Quick, "quick-float16")
    assert built.identity()["engine"] == "quick-float16"


@pytest.mark.parametrize("verb", ["eval", "attack"])
def test_tensor_parallel_belongs_to_the_engines_that_have_such_a_setting(verb):
    words = [verb, "nowhere", "--task", "pocket", "--tensor-parallel", 2]
    for more in ([], ["--engine", "transformers"], ["--engine", "transformers-eos-masked"], ["--engine="]):
        said = regrade(*words, *more, code=2).stderr
        assert said == "regrade: --tensor-parallel: is a setting of vllm. Add --engine vllm\n"
    assert "unknown: vlm. Did you mean vllm?" in regrade(verb, ROOT, *words[2:], "--engine", "vlm", code=2).stderr


@pytest.mark.parametrize(("engine", "hint"), [("vlm", " Did you mean vllm?"), ("transformers-eos-masked", "")])
def test_a_cross_check_is_with_an_engine_that_can_be_compared(engine, hint):
    said = regrade("eval", ROOT, "--task", "pocket", "--cross-check", "--engine", engine, code=2).stderr
    assert said == f"regrade: --engine {engine}: is not compared with transformers.{hint} (allowed: vllm)\n"


KNOW_NO_ENGINE = [
    "suite/engines/choosing.py",
    *(f"suite/cli/{n}.py" for n in "checkpoint eval_ attack doctor ls".split()),
]


@pytest.mark.parametrize("file", KNOW_NO_ENGINE)
def test_no_engine_is_known_by_name(file):
    """Neither in a string nor by its module; docstrings may name one."""
    tree = ast.parse((ROOT / file).read_text())
    docs = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and isinstance(node.body[0], ast.Expr)
    }
    said = [
        n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str) and n not in docs
    ]
    said += [n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
    said += [f"{n.module}" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    for text in said:
        assert not {*ENGINES, "eos_masked"} & set(text.replace(".", " ").lower().split()), text


def test_no_engine_takes_the_name_of_a_setting():
    """The names are written down in a room below; they are all that `measure` has besides the engines' own."""
    assert {*MeasureSpec.model_fields} - {*EngineSettings.model_fields} == {*RESERVED}
