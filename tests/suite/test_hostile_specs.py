"""Whatever is wrong with a spec, an argument or a data file is said in one sentence, at once, and nothing is run."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from suite.config.errors import SpecError
from suite.runners.search import some_trial
from suite.spec.search_space import known_keys, plan
from suite.spec.trial import trial
from suite.spec.yaml_file import load_file
from tasks import plain_yaml
from tasks.files import VARIABLE, read
from tasks.plain_text import Unreadable
from tasks.task import TaskError
from tests.support import processes
from tests.support.command import regrade
from tests.support.hostile_specs import DATA, FILES, GOOD, SETTINGS, WORDS

CONFIGS = Path(__file__).parents[2] / "configs"
SOON = 5
"""Seconds; most take hundredths."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a good spec, and nothing else that a command may leave there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, str(CONFIGS))
    (tmp_path / "good.yaml").write_text(GOOD)
    return tmp_path


def refused(*words: str) -> str:
    """The sentence with which a command is refused."""
    before, began = _files(), time.monotonic()
    done = regrade(*words, code=2)
    assert time.monotonic() - began < SOON
    assert done.stderr.startswith("regrade: ") and done.stderr.count("\n") == 1, done.stderr
    assert len(done.stderr) < 1500 and "Traceback" not in done.stderr
    assert "nput should" not in done.stderr, "pydantic's own words"
    assert not done.stdout and _files() == before, "something was run"
    return done.stderr


def _files() -> set[Path]:
    """Whatever stands in the working directory, apart from folders that a store is to have."""
    return {path for path in Path().rglob("*") if path.name == "canary" or not path.is_dir()}


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_refused_by_name_and_line(name, here):
    content, words = FILES[name]
    file = here / "hostile.yaml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    said = refused("validate", "hostile.yaml")
    assert all(word in said for word in words), said
    if name != "dotted":
        assert said.startswith("regrade: hostile.yaml: ")


@pytest.mark.parametrize(("override", "words"), SETTINGS, ids=[text[:30] for text, _ in SETTINGS])
def test_a_hostile_setting_is_refused_by_its_key(override, words, here):
    said = refused("validate", "good.yaml", override)
    assert all(word in said for word in words), said


@pytest.mark.parametrize(("command", "words"), WORDS, ids=[" ".join(words)[:40] for words, _ in WORDS])
def test_a_hostile_argument_is_refused_by_its_name(command, words, here):
    said = refused(*["good.yaml" if word == "SPEC" else word for word in command])
    assert all(word in said for word in words), said


@pytest.mark.parametrize("verb", ["run", "sweep"])
def test_run_and_sweep_refuse_like_validate_and_leave_no_store(verb, here):
    for override, words in SETTINGS[::12]:
        said = refused(verb, "good.yaml", override, "--store", "store")
        assert all(word in said for word in words), said


# Files that are none


@pytest.mark.parametrize("kind", ["pipe", "endless", "folder", "broken link"])
def test_what_is_no_ordinary_file_is_not_opened(kind, here):
    """In a process of its own: to open the pipe would wait for ever."""
    file = here / "it"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to("/dev/zero" if kind == "endless" else "nowhere")
    done = processes.start("run", file).wait(timeout=60)
    assert done.returncode == 2 and done.stderr.startswith(f"regrade: {file}: ") and done.stderr.count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_named(here):
    (here / "good.yaml").chmod(0)
    assert "good.yaml: Permission denied" in refused("validate", "good.yaml")


# Sizes


def test_a_sweep_that_is_too_large_is_counted_and_not_made(here):
    seeds, steps = list(range(1000)), list(range(1, 1001))
    search: dict[str, Any] = {"grid": {"seed": seeds, "steps": steps}, "cases": [{}, {"batch_size": 2}]}
    (here / "large.yaml").write_text(GOOD + yaml.safe_dump({"search": search}))
    assert "2,000,000 points (1,000 of seed, 1,000 of steps, 2 cases)" in refused("validate", "large.yaml")
    grid = {"optimizer.name": ["adam", "hybrid"], "optimizer.zo.samples": steps, "seed": seeds}
    (here / "names.yaml").write_text(GOOD + yaml.safe_dump({"search": {"grid": grid}}))
    assert "1,001,000 points" in refused("sweep", "names.yaml"), "adam has no zo.samples"


def test_axes_that_do_not_exist_for_a_trial_are_not_counted():
    """A thousand values of each of two settings that only a hybrid has, and adam beside one of them."""
    data = yaml.safe_load(GOOD) | {"optimizer": {"name": "adam", "lr": 1e-3}, "anchors": {"epochs": 1, "lr": 3e-3}}
    grid = {"optimizer.zo.samples": list(range(1, 1001)), "seed": list(range(101))}
    cases = [{}, {"optimizer": {"name": "hybrid"}, "seed": 7}]
    with pytest.raises(SpecError, match="101,101 points"):
        plan({**data, "search": {"grid": grid, "cases": cases}})


@pytest.mark.parametrize("override", ["seed=4294967295", "steps=10000000", "anchors.seed=4294967295"])
def test_the_largest_numbers_are_taken(override, here):
    regrade("validate", "good.yaml", override)


# Folders of checkpoints


@pytest.fixture
def elsewhere(here: Path) -> Path:
    """A spec in a folder of its own, beside a folder of a model that is none but for its name."""
    folder = here / "project"
    (folder / "models/mine").mkdir(parents=True)
    (folder / "tiny").mkdir()
    (here / "work").mkdir()
    os.chdir(here / "work")
    return folder


def spec_of(folder: Path, text: str) -> Path:
    without_model = "".join(line for line in GOOD.splitlines(True) if not line.startswith(("model:", "  tiny:")))
    (folder / "spec.yaml").write_text(without_model + text)
    return folder / "spec.yaml"


@pytest.mark.parametrize("name", ["models/mine", "./models/mine", "../project/models/mine"])
def test_a_checkpoint_is_found_from_the_folder_of_the_file(name, elsewhere):
    file = spec_of(elsewhere, f"model: {{name: {name}}}\n")
    assert load_file(file)["model"]["name"] == "../project/models/mine", "as seen from the working directory"
    (elsewhere.parent / "work/models").symlink_to(elsewhere / "models")
    assert load_file(file, ["model.name=models/mine"])["model"]["name"] == "models/mine"


def test_a_path_that_is_relative_to_the_working_directory_keeps_its_name_and_the_trial_its_id(elsewhere):
    os.chdir(elsewhere)
    for name in ("models/mine", "./models/mine", "models/../models/mine"):
        file = spec_of(elsewhere, f"model: {{name: {name}}}\n")
        data = load_file(Path("spec.yaml"))
        assert data["model"]["name"] == name
        assert trial({k: v for k, v in data.items() if k != "measure"}).canonical["model"]["name"] == name
        os.chdir(elsewhere.parent)
        os.makedirs("models/mine", exist_ok=True)
        assert load_file(file)["model"]["name"] == "project/models/mine", "the file's folder comes first"
        os.chdir(elsewhere)


def test_anchors_cases_grids_and_spaces_are_seen_from_the_file_too(elsewhere):
    text = """
model: {name: models/mine}
search:
  cases: [{anchors: {target: models/mine, retrained: ./models/mine, epochs: null, lr: null}}]
  grid: {model.name: [models/mine, tiny, owner/model], seed: [0]}
"""
    data = load_file(spec_of(elsewhere, text))
    found = "../project/models/mine"
    assert data["search"]["cases"][0]["anchors"] == {"target": found, "retrained": found, "epochs": None, "lr": None}
    assert data["search"]["grid"] == {"model.name": [found, "tiny", "owner/model"], "seed": [0]}
    space = load_file(spec_of(elsewhere, "search: {trials: 2, space: {model: [{name: models/mine}]}}\n"))
    assert space["search"]["space"] == {"model": [{"name": found}]}


def test_tiny_is_the_model_that_is_made_here_whatever_folders_there_are(elsewhere):
    assert load_file(spec_of(elsewhere, "model: {name: tiny}\n"))["model"]["name"] == "tiny"
    os.chdir(elsewhere)
    (elsewhere / "deeper").mkdir()
    assert load_file(spec_of(elsewhere / "deeper", "model: {name: ../tiny}\n"))["model"]["name"] == "./tiny"


def test_a_checkpoint_that_is_nowhere_is_named_with_both_places(elsewhere):
    file = spec_of(elsewhere, "model: {name: ./models/yours}\n")
    said = refused("validate", str(file))
    assert f"model.name: there is no folder ./models/yours in {elsewhere} or {Path.cwd()}" in said
    said = refused("validate", str(file), "model.name=../mine")
    assert f"no folder ../mine in {Path.cwd()}. " in said, "overrides are relative to the working directory alone"
    said = refused("validate", str(spec_of(elsewhere, "model: {name: a/b/c}\n")))
    assert "a/b/c" in said and str(elsewhere) in said


def test_the_home_folder_may_be_written_as_a_tilde(elsewhere, monkeypatch):
    monkeypatch.setenv("HOME", str(elsewhere))
    assert load_file(spec_of(elsewhere, "model: {name: ~/models/mine}\n"))["model"]["name"] == "~/models/mine"
    said = refused("validate", "../project/spec.yaml")
    assert "config.json" in said, "the folder was found, and looked at"


def test_a_published_model_is_no_folder(elsewhere):
    (elsewhere / "MUSE-News").mkdir()
    (elsewhere / "muse.yaml").write_text((CONFIGS / "muse-news.yaml").read_text())
    assert load_file(elsewhere / "muse.yaml")["model"]["name"] == "MUSE-News"


# Data


@pytest.mark.parametrize("name", DATA)
def test_a_hostile_data_file_is_refused_by_file_and_row(name, tmp_path):
    file, content, words = DATA[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(TaskError) as refusal:
        read(tmp_path / file)
    said = str(refusal.value)
    assert said.startswith(f"{tmp_path / file}: not readable as ") and "\n" not in said and len(said) < 400
    assert all(word in said for word in words), said


def test_a_byte_order_mark_is_no_part_of_a_file(here):
    bom = b"\xef\xbb\xbf"
    for name, content in [("a.json", b'["x"]'), ("a.jsonl", b'{"text": "x"}'), ("a.txt", b"x\n")]:
        (here / name).write_bytes(bom + content)
        assert read(here / name) == [{"text": "x"}]
    (here / "bom.yaml").write_bytes(bom + GOOD.encode())
    assert load_file(here / "bom.yaml") == load_file(here / "good.yaml")


@pytest.mark.parametrize("name", ["forget.jsonl", "task.yaml"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "duplicate", "deep"])
def test_hostile_files_of_a_custom_task_are_named(name, kind, here, monkeypatch):
    folder = here / "data/custom/letters"
    folder.mkdir(parents=True)
    rows = [json.dumps({"question": f"Letter {i}?", "answer": str(i)}) for i in range(12)]
    (folder / "forget.jsonl").write_text("\n".join(rows[:6]))
    (folder / "retain.jsonl").write_text("\n".join(rows[6:]))
    (folder / "task.yaml").write_text("block: null\n")
    monkeypatch.setenv(VARIABLE, str(here / "data"))
    regrade("validate", "good.yaml", "task=custom/letters", "batch_size=2", "measure.attacks=[]")
    (folder / name).unlink()
    if kind == "pipe":
        os.mkfifo(folder / name)
    elif kind == "folder":
        (folder / name).mkdir()
    else:
        wrong = '{"question": "a", "question": "b"}' if kind == "duplicate" else '{"question": ' + "[" * 9999
        (folder / name).write_text(wrong)
    done = processes.start("validate", "good.yaml", "task=custom/letters").wait(timeout=60)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert str(folder / name) in done.stderr


def test_a_folder_of_data_that_is_not_there_is_said_where_data_is_needed(here, monkeypatch):
    monkeypatch.setenv(VARIABLE, "/nowhere")
    for task in ("tofu/forget01", "custom/lighthouses", "rwku/Ada", "muse/news", "wmdp/bio"):
        assert f"{VARIABLE}: /nowhere is no folder" in refused("validate", "good.yaml", f"task={task}")
    regrade("validate", "good.yaml")  # pocket brings its data
    regrade("ls", "tasks")


# What is honest


@pytest.mark.parametrize(
    ("name", "count", "digest"),
    [
        ("custom", 1, "6cd6a65f18a7f740"),
        ("muse-news", 1, "6d54fcb8dd37c8b0"),
        ("pocket", 1, "9bce1be543088e51"),
        ("sweeps/grades", 10, "41837caca3368ff8"),
        ("sweeps/methods", 7, "52dc443f10716443"),
        ("sweeps/search", 1, "75cc74a0a0b2d37c"),
        ("tofu-published", 1, "f7cc856daa99c37b"),
        ("tofu-smollm2", 1, "08ebd356a09121cb"),
        ("tofu-tiny", 1, "7b55c9a516358997"),
        ("wmdp-cyber", 1, "03d0706e61101a51"),
    ],
)
def test_the_specs_of_this_repository_have_the_ids_that_they_had(name, count, digest, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    made = plan(load_file(Path("configs") / f"{name}.yaml"))
    trials = [some_trial(made)] if made.search.space else made.trials()
    trials = [spec for spec in trials if spec.seed < 2]  # a third seed came later
    assert len(trials) == count
    assert hashlib.sha256(" ".join(spec.id for spec in trials).encode()).hexdigest()[:16] == digest


def test_anchors_and_merge_keys_are_read(here):
    text = GOOD.replace("optimizer: {name", "optimizer: &common {name") + (
        "search:\n  cases:\n    - optimizer: {<<: *common, lr: 1}\n    - &two {seed: 2, optimizer: *common}\n"
        "    - {<<: [*two, {steps: 3}], seed: 3}\n"
    )
    (here / "merged.yaml").write_text(text)
    made = plan(load_file(here / "merged.yaml")).trials()
    assert [(spec.optimizer.lr, spec.seed, spec.steps) for spec in made] == [(1, 0, 4), (1e-3, 2, 4), (1e-3, 3, 3)]


def test_what_looks_like_a_date_or_an_equals_sign_is_text():
    assert plain_yaml.load("a: 2001-01-01\nb: =\nc: !!str 5") == {"a": "2001-01-01", "b": "=", "c": "5"}


# Whatever else

HOSTILE = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 2, 10**9, 2**31, 2**32, 2**63, 2**64, -(2**63), 10**90]),
    st.sampled_from([0.0, -0.0, 0.5, 1e-300, 5e-324, 1e15, 1e308, -1e308]),
    st.sampled_from(["", "x", "npo", "adam", "hybrid", "tiny", "published", "all", "*", "[!", "~", "/", "..", "a/b"]),
    st.sampled_from(["é" * 300, "a" * 5000, "\x01", "\u2028", "null", "1e5", "custom/x", "rwku/y", "1" * 300]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.sampled_from([[], [[]], [None], [1], ["x"], [{}], {}, {"name": None}, {"name": 1}, {"name": "hybrid"}]),
    st.sampled_from([{"low": 1, "high": 1e15, "log": True}, {"low": -1e308, "high": 1e308}, {"a": {"b": 1}}, {"": 1}]),
)
SPECS = [load_file(CONFIGS / f"{name}.yaml") for name in ("pocket", "custom", "sweeps/grades", "sweeps/search")]
KEYS = sorted(
    {key for spec in SPECS for key in known_keys(spec)}
    | {"measure.attacks", "measure.limit", "measure.match", "measure.also", "measure.splits", "runtime.threads"}
    | {"search.grid", "search.space", "search.trials", "search.cases", "search.seed", "search.maximize"}
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spec=st.sampled_from(SPECS), changes=st.dictionaries(st.sampled_from(KEYS), HOSTILE, min_size=1, max_size=3))
def test_a_good_spec_with_any_value_at_any_key_is_valid_or_refused(spec, changes, here):
    data = copy.deepcopy(spec)
    for key, value in changes.items():
        section = data
        *above, last = key.split(".")
        for name in above:
            section[name] = section[name] if isinstance(section.get(name), dict) else {}
            section = section[name]
        section[last] = value
    (here / "changed.yaml").write_text(yaml.safe_dump(data, allow_unicode=True))
    began = time.monotonic()
    try:
        regrade("validate", "changed.yaml")
    except AssertionError:
        refused("validate", "changed.yaml")
    assert time.monotonic() - began < 4 * SOON


PIECES = ["&a ", "*a", "<<: ", "!!int ", "!x ", "|", "? ", ": ", "- ", "[", "]", "{", "}", ",", "#", "%", "@", "\t"]
PIECES += ["---\n", "...\n", '"', "'", "\\", "\\U", "0x_", "1e5", "_", "\r", "\n", "\u2028", "~", "=", ".inf", "0b_"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12), st.integers(0, len(GOOD)))
def test_any_text_is_plain_yaml_or_refused(pieces, place):
    try:
        value = plain_yaml.load(GOOD[:place] + "".join(pieces) + GOOD[place:])
    except Unreadable as error:
        assert "\n" not in str(error)
    else:
        json.dumps(value, allow_nan=False)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    suffix=st.sampled_from([".json", ".jsonl", ".txt"]),
    pieces=st.lists(
        st.sampled_from([b'{"text": "x"}', b"\n", b"[", b"]", b",", b"NaN", b"\\ud800", b'"', b"\0", b"\xff"])
    ),
)
def test_any_bytes_are_rows_or_refused(suffix, pieces, tmp_path):
    file = tmp_path / f"a{suffix}"
    file.write_bytes(b"".join(pieces))
    try:
        rows = read(file)
    except TaskError as error:
        assert str(error).startswith(f"{file}: ") and "\n" not in str(error)
    else:
        assert all(isinstance(row, dict) for row in rows)
