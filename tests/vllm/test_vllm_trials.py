"""Whole trials, and the commands, with the vLLM engine: the same scores as with transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from leaderboard.board.store import Board
from suite.engines import Job, TransformersEngine
from suite.models.checkpoints import LoraCheckpoint, SavedCheckpoint
from tests.support.small import SMALL

TINY = {"hidden": 64, "layers": 1, "heads": 2, "vocabulary": 512}
"""Heads of 32: vLLM has no kernel on a CPU for the 16 of `SMALL`."""

SWEEP = {
    **SMALL,
    "model": {"tiny": TINY},
    "steps": 2,
    "measure": {
        "attacks": [
            {"name": "rtn", "bits": 3},
            {"name": "relearn", "lr": 1e-3, "samples": 4, "steps": 2},
            {"name": "frame", "kind": "role_play"},
            {"name": "sample", "draws": 2},
            # Short turns: an untrained model is often undecided, and later turns depend on its earlier ones.
            {"name": "multi_turn", "after": "self", "rounds": 1, "max_new_tokens": 16},
        ],
        "limit": 4,
    },
    "search": {"grid": {"optimizer.name": ["adam", "r_adazo"]}},
}


def regrade(*words: str, code: int = 0) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", "from suite.cli import main; main()", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> dict[str, Path]:
    """The same sweep by both engines, on Ray."""
    folder = tmp_path_factory.mktemp("swept")
    (folder / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    stores = {}
    for engine in ("transformers", "vllm"):
        stores[engine] = folder / engine
        regrade(
            *("sweep", str(folder / "sweep.yaml"), "--engine", engine, "--runner", "ray"),
            *("--store", str(stores[engine])),
        )
    return stores


def numbers(store: Path) -> dict[tuple, dict]:
    key = ("trial", "subject", "attack", "point", "probe", "subset", "split", "matching", "metric")
    return {tuple(row[k] for k in key): row for row in Board(store / "board").read("measurements").to_pylist()}


def test_a_sweep_has_the_same_scores_with_either_engine(swept):
    """Likelihoods to 1e-4, and texts except those that diverge at a tie (none did in these trials)."""
    plain, fast = (numbers(swept[engine]) for engine in ("transformers", "vllm"))
    assert plain.keys() == fast.keys()
    assert len({key[2] for key in plain}) == 6
    for key, row in plain.items():
        assert fast[key]["status"] == row["status"]
        if row["value"] is not None:
            assert fast[key]["value"] == pytest.approx(row["value"], abs=1e-4), key
    assert {row["engine"] for row in plain.values()} == {"transformers-float32"}
    assert {row["engine"] for row in fast.values()} == {"vllm-float32"}
    assert {row["batch_invariant"] for row in (*plain.values(), *fast.values())} == {False}
    assert all("+transformers-" in row["engine_version"] for row in fast.values())


def test_what_is_in_the_store_starts_no_engine(swept):
    spec = str(swept["vllm"].parent / "sweep.yaml")
    again = regrade("sweep", spec, "--engine", "vllm", "--store", str(swept["vllm"]))
    assert "no stage computed" in again.stdout


def test_a_checkpoint_by_itself_and_a_cross_check(swept, tmp_path):
    target = next((swept["vllm"] / "stages" / "target").glob("*/config.json")).parent
    words = ("eval", str(target), "--task", "pocket", "--template", "bare", "--limit", "3", "--json")
    rows = {
        engine: json.loads(regrade(*words, "--engine", engine, "--store", str(tmp_path / engine)).stdout)
        for engine in ("transformers", "vllm")
    }
    assert [row["value"] for row in rows["vllm"]] == pytest.approx(
        [row["value"] for row in rows["transformers"]], abs=1e-4
    )
    found = json.loads(regrade(*words, "--cross-check").stdout)
    assert {one["kind"] for one in found} == {"generate", "logprob", "choice"}
    assert all(one["parted"] == 0 and one["n"] == one["same"] + one["ties"] for one in found)
    assert all(one["worst"] < 1e-3 for one in found if one["worst"] is not None)


def test_adapters_are_asked_unmerged(untied, engines, encoder, probes, pids, tmp_path, monkeypatch):
    """Two unmerged adapters of one model, in turn, with base weights that are loaded once, against the merged model."""
    from peft import LoraConfig, get_peft_model

    base, found = SavedCheckpoint(untied(0)), []
    adapters = []
    for seed in range(2):
        torch.manual_seed(seed)
        config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"])
        adapted = get_peft_model(base.model(), config)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn_like(parameter) * 0.2)
        adapted.save_pretrained(tmp_path / str(seed))
        adapters.append(LoraCheckpoint(base, tmp_path / str(seed)))
    generating = probes[:3]
    jobs = [Job(str(i), checkpoint, generating) for i, checkpoint in enumerate([*adapters, *adapters])]
    wanted = {
        one.key: one.samples
        for one in TransformersEngine(encoder, dtype="float32", device=torch.device("cpu")).submit(jobs)
    }
    monkeypatch.setattr(LoraCheckpoint, "state", None)  # merging would call it
    for one in engines().submit(jobs):
        assert one.error is None
        found.append(one)
        for probe in generating:
            assert one.samples[probe.name] == wanted[one.key][probe.name]
    assert found[0].samples != found[1].samples
    assert len(pids()) == 1
