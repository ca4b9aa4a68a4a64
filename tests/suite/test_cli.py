"""The command as users see it: exit codes, messages, JSON, and the board after a small run."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.command import regrade
from tests.support.disks import mounted, small_disk
from tests.support.small import SMALL

CONFIGS = Path(__file__).parents[2] / "configs"


def test_the_command_is_a_process_with_exit_codes(tmp_path):
    call = [sys.executable, "-c", "from suite.cli import main; main()"]
    assert subprocess.run([*call, "ls", "tasks"], capture_output=True).returncode == 0
    wrong = subprocess.run([*call, "run", "nowhere.yaml"], capture_output=True, text=True, cwd=tmp_path)
    assert (wrong.returncode, wrong.stderr) == (2, "regrade: nowhere.yaml: No such file or directory\n")


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> tuple[Path, Path]:
    """A spec file and a store after one small run of it."""
    folder = tmp_path_factory.mktemp("cli")
    spec = folder / "small.yaml"
    # A model that memorizes: otherwise the anchors are too close for any headline.
    learns = {
        "model": {"tiny": {"hidden": 64, "layers": 2, "heads": 2, "vocabulary": 1024}},
        "anchors": {"epochs": 16, "lr": 6e-3},
        "measure": {"limit": 30},
    }
    spec.write_text(yaml.safe_dump({**SMALL, **learns}))
    regrade("run", spec, "--store", folder / "store")
    return spec, folder / "store"


def test_a_second_run_computes_no_stage_and_says_so(ran):
    spec, store = ran
    assert "no stage computed" in regrade("run", spec, "--store", store).stdout
    outcome = json.loads(regrade("run", spec, "--store", store, "--json").stdout)
    assert outcome["computed"] == {}
    assert outcome["status"] == "ok"


def test_the_board_is_shown_written_and_reported(ran):
    _, store = ran
    shown = regrade("board", "show", "--store", store).stdout
    assert "pocket" in shown
    assert "adam" in shown
    (ranking,) = json.loads(regrade("board", "show", "--store", store, "--json").stdout)
    assert ranking["task"] == "pocket"
    assert len(ranking["entries"]) == 1
    page = Path(json.loads(regrade("board", "page", "--store", store, "--json").stdout)["page"])
    assert "adam" in page.read_text()
    (reported,) = json.loads(regrade("report", store, "--json").stdout)
    assert all(Path(plot).stat().st_size > 1000 for plot in reported["plots"])
    assert "plot:" in regrade("report", store).stdout


def test_sweeps_are_said_in_the_call(ran, tmp_path):
    spec, store = ran
    shutil.copytree(store, tmp_path / "store")  # its anchors need not be trained again
    output = json.loads(
        regrade("sweep", spec, "--grid", "optimizer.name=adam,hybrid", "--grid", "seed=0,1", "steps=2",
                "measure.attacks=[]", "--store", tmp_path / "store", "--json").stdout
    )  # fmt: skip
    assert [t["status"] for t in output["trials"]] == ["ok"] * 4
    assert len({t["trial"] for t in output["trials"]}) == 4


SHIPPED = [file for file in sorted(CONFIGS.rglob("*.yaml")) if file.parent.parent.name != "custom"]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda f: f.relative_to(CONFIGS).as_posix())
def test_every_config_that_is_shipped_is_valid(file, monkeypatch):
    from suite.cli.common import read_plan

    plan = read_plan(file, ())
    specs = [] if plan.search.space else plan.trials()
    if any(spec.model.name != "tiny" or spec.task.startswith("tofu/") for spec in specs):
        return  # its model and its data are not here; tests/tasks runs such trials
    monkeypatch.setenv("REGRADE_DATA", str(CONFIGS))  # of custom tasks
    done = json.loads(regrade("validate", file, "--json").stdout)
    assert done["valid"]
    assert all(t["cost"]["steps"] > 0 for t in done["trials"])


@pytest.mark.parametrize(
    "axis", ["tasks", "objectives", "optimizers", "smoothings", "attacks", "engines", "metrics", "diagnostics"]
)  # fmt: skip
def test_ls_lists_every_axis(axis):
    rows = json.loads(regrade("ls", axis, "--json").stdout)
    assert len(rows) >= 2
    assert all(row["name"] for row in rows)
    assert rows[0]["name"] in regrade("ls", axis).stdout


def test_ls_optimizers_gives_name_and_grade():
    grades = {row["name"]: row["grade"] for row in json.loads(regrade("ls", "optimizers", "--json").stdout)}
    assert grades["adam"] == "first"
    assert grades["hybrid"] == "hybrid"
    assert set(grades.values()) == {"second", "first", "compressed", "zeroth", "hybrid"}


def test_doctor_says_what_there_is(ran):
    found = json.loads(regrade("doctor", "--store", ran[1], "--json").stdout)
    assert found["python"]["found"] == ".".join(map(str, sys.version_info[:3]))
    assert found["store"]["found"] == "sound"
    assert "torch" in regrade("doctor").stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "SPEC", "stepz=3"], "stepz: unknown key. Did you mean steps?"),
        (["run", "SPEC", "optimizer.zo.samples=2"], "optimizer.zo"),
        (["run", "SPEC", "optimizer.name=hybrid", "optimizer.zo_ratio=2"], "optimizer.zo_ratio"),
        (["run", "SPEC", "steps=0"], "steps"),
        (["run", "SPEC", "steps=many"], "steps"),
        (["run", "SPEC", "task=pockets"], "Did you mean pocket?"),
        (["run", "SPEC", "optimizer.name=adamm"], "Did you mean adam?"),
        (["run", "SPEC", "measure.attacks=pocket-9"], "pocket-2"),
        (
            ["run", "SPEC", "measure.attacks=[{name: relearn, samples: 999, steps: 1, lr: 0.1}]"],
            "only 520 forget texts",
        ),
        (["run", "SPEC", "batch_size=600"], "batch_size"),
        (["run", "SPEC", "model.name=owner/model"], "tiny belongs to name=tiny"),
        (["run", "POCKET", "model.name=/nowhere/at/all"], "model.name"),
        (["run", "SPEC", "runtime.device=cuda"], "runtime.device"),
        (["run", "SPEC", "search.grid={seed: [0, 1]}"], "regrade sweep"),
        (["run", "nowhere.yaml"], "nowhere.yaml"),
        (["sweep", "SPEC", "--grid", "seeds=0,1"], "Did you mean seed?"),
        (["sweep", "SPEC", "--grid", "seed"], "--grid key=value"),
        (["sweep", "SPEC", "--search", "optuna"], "search.space"),
        (["sweep", "SPEC", "--concurrency", "2"], "--runner ray"),
        (["sweep", "SPEC", "--runner", "slurm"], "slurm"),
        (["validate", "SPEC", "forget=[people]"], "passages"),
        (["ls", "optimisers"], "optimizers"),
        (["board", "show", "--store", "EMPTY"], "no board here"),
        (["board", "show", "--store", "STORE", "--split", "train"], "dev, test"),
        (["board", "show", "--store", "STORE", "--task", "pocet"], "pocket"),
        (["report", "EMPTY"], "no board here"),
        (["fly"], "fly"),
    ],
)
def test_what_is_asked_wrongly_ends_in_2_and_computes_nothing(ran, tmp_path, words, message):
    if "cuda" in str(words):
        import torch

        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU")
    spec, store = ran
    places = {"POCKET": CONFIGS / "pocket.yaml", "SPEC": spec, "STORE": store, "EMPTY": tmp_path / "empty"}
    arguments = [places.get(word, word) for word in words]
    if arguments[0] in ("run", "sweep"):
        arguments += ["--store", tmp_path / "untouched"]
    done = regrade(*arguments, code=2, cwd=tmp_path)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "untouched").glob("stages/*")), "nothing was computed"


@pytest.mark.parametrize(
    "words",
    [
        ["run", "SPEC", "--store"],
        ["sweep", "SPEC", "--grid", "seed=0,1", "--store"],
        ["eval", "CHECKPOINT", "--task", "pocket", "--store"],
        ["eval", "CHECKPOINT", "--task", "pocket", "--cross-check", "--store"],
        ["attack", "CHECKPOINT", "--task", "pocket", "--store"],
        ["board", "show", "--store"],
        ["board", "page", "--store"],
        ["report"],
        ["doctor", "--store"],
        ["import", "open-unlearning", "LOGS", "--store"],
    ],
    ids=lambda words: " ".join(words),
)
def test_a_store_that_is_no_folder_is_refused_by_every_verb(ran, tmp_path, words, monkeypatch):
    arguments = [ran[0] if word == "SPEC" else word for word in words]
    for url in ("s3://bucket/store", "gs://bucket", "file://machine/store"):
        message = regrade(*arguments, url, code=2, cwd=tmp_path).stderr
        assert f"store {url}: " in message and ("not supported yet" in message or "three slashes" in message)
    if arguments[-1] == "--store":
        monkeypatch.setenv("REGRADE_STORE", "s3://bucket/store")
        assert "not supported yet" in regrade(*arguments[:-1], code=2, cwd=tmp_path).stderr
    assert list(tmp_path.iterdir()) == [], "no folder is called s3:"


def test_a_store_may_be_named_as_a_file_url(ran, tmp_path):
    spec, store = ran
    shown = regrade("board", "show", "--store", store, "--json").stdout
    assert regrade("board", "show", "--store", f"file://{store}", "--json").stdout == shown
    assert "no stage computed" in regrade("run", spec, "--store", f"file://localhost{store}", cwd=tmp_path).stdout
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def full_disk(tmp_path):
    """A file system of one megabyte."""
    with small_disk(tmp_path / "small", "1m") as folder:
        yield folder


@pytest.fixture
def read_only(ran, tmp_path):
    """The store after a run, mounted read-only."""
    with mounted(tmp_path / "read-only", "--bind", "-o", "ro", str(ran[1])) as folder:
        yield folder


def test_a_page_that_does_not_fit_leaves_the_page_that_was_there(ran, full_disk):
    store = full_disk / "store"
    shutil.copytree(ran[1] / "board", store / "board", ignore=shutil.ignore_patterns("samples"))
    page = Path(json.loads(regrade("board", "page", "--store", store, "--json").stdout)["page"])
    before = page.read_bytes()
    with pytest.raises(OSError, match="No space left"), open(full_disk / "filler", "wb", buffering=0) as file:
        while True:
            file.write(bytes(2**12))
    for words in (["board", "page", "--store", store], ["report", store]):
        message = regrade(*words, code=1).stderr
        assert "No space left on device. What to do: make room there and run again" in message
        assert "Traceback" not in message
    assert page.read_bytes() == before
    assert [path.name for path in store.rglob("*.svg")] == []


def test_a_trial_on_a_full_disk_fails_in_one_sentence(ran, full_disk):
    message = " ".join(regrade("run", ran[0], "anchors.epochs=1", "--store", full_disk, code=1).stderr.split())
    assert "the disk is full. Nothing was lost: free some space, or move the store, and run again" in message
    assert "Traceback" not in message


def test_a_checkpoint_on_a_full_disk_fails_in_one_sentence(ran, full_disk):
    checkpoint = next(path.parent for path in ran[1].glob("stages/*/*/model.safetensors"))
    filler = full_disk / "filler"
    filler.write_bytes(bytes(full_disk.stat().st_blksize * 230))
    with open(filler, "ab", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(2**12))
    words = ["eval", checkpoint, "--task", "pocket", "--limit", "2", "--store", full_disk]
    output = regrade(*words, code=1)
    assert "the disk is full. Nothing was lost" in output.stderr
    assert "Traceback" not in output.stderr


def test_a_store_that_may_only_be_read_is_shown_and_its_outputs_go_elsewhere(ran, read_only, tmp_path):
    assert "adam" in regrade("board", "show", "--store", read_only).stdout
    for words in (["board", "page", "--store", read_only], ["report", read_only]):
        message = regrade(*words, code=2).stderr
        assert "Read-only file system. What to do: name another place" in message
        assert "Traceback" not in message
    regrade("board", "page", "--store", read_only, "--out", tmp_path / "page.html")
    assert "adam" in (tmp_path / "page.html").read_text()
    (reported,) = json.loads(regrade("report", read_only, "--out", tmp_path / "plots", "--json").stdout)
    assert {Path(plot).parent for plot in reported["plots"]} == {tmp_path / "plots"}
    assert "Read-only" in json.loads(regrade("doctor", "--store", read_only, "--json").stdout)["hard links"]["note"]
    assert "can be written to" in regrade("run", ran[0], "--store", read_only, code=2).stderr


def test_an_output_that_cannot_be_written_ends_in_2(ran, tmp_path):
    (tmp_path / "file").touch()
    for words in (["board", "page", "--store", ran[1]], ["report", ran[1]]):
        message = regrade(*words, "--out", tmp_path / "file" / "below", code=2).stderr
        assert "not written, Not a directory. What to do: name another place" in message


def test_a_file_system_without_hard_links_is_refused_before_anything_is_computed(ran, tmp_path, monkeypatch):
    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    assert json.loads(regrade("doctor", "--store", ran[1], "--json").stdout)["hard links"]["found"] == "yes"
    monkeypatch.setattr(os, "link", refused)
    message = regrade("run", ran[0], "--store", tmp_path / "untouched", code=2).stderr
    assert "no hard links" in message and "Name a folder on a local disk" in message and "NFS" in message
    assert list((tmp_path / "untouched").iterdir()) == []
    row = json.loads(regrade("doctor", "--store", ran[1], "--json").stdout)["hard links"]
    assert row["found"] == "no" and row["note"] in message


def test_standard_output_that_takes_no_more_ends_without_a_traceback():
    call = [sys.executable, "-c", "from suite.cli import main; main()", "ls", "metrics", "--json"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(call, stdout=full, stderr=subprocess.PIPE, text=True)
    sentence = "regrade: standard output: not written, No space left on device. What to do: make room and run again\n"
    assert (done.returncode, done.stderr) == (1, sentence)
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(call, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_packages_without_torch_and_ray():
    imports = "import tasks, leaderboard, leaderboard.ranking.rank, leaderboard.page, sys"
    code = f"{imports}; assert not {{'torch', 'ray'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_imports_only_go_one_way():
    """suite -> tasks, suite -> leaderboard, leaderboard -> tasks; Ray only in its runner, the cluster and the pool."""
    import ast

    root = CONFIGS.parent
    for file in [
        *(root / "tasks").rglob("*.py"),
        *(root / "leaderboard").rglob("*.py"),
        *(root / "suite").rglob("*.py"),
    ]:
        names = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
        room = file.relative_to(root).parts[0]
        forbidden = {"tasks": {"suite", "leaderboard", "torch", "ray"}, "leaderboard": {"suite", "torch", "ray"}}
        assert not names & forbidden.get(room, set()), file
        with_ray = {
            "runners/ray_tune.py",
            "cluster/connection.py",
            *(f"engines/vllm/{n}.py" for n in ("engine", "pool", "process")),
        }
        place = "/".join(file.relative_to(root).parts[1:])
        assert "ray" not in names or place in with_ray, file
        assert "vllm" not in names or place.startswith("engines/vllm/"), file
