"""What all tests share: no hub, one thread, the real data where there is some, and a small trial that is run once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("tests.support")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

LONGEST = """
suite/test_runners.py suite/test_conformance.py tasks/test_whole_trials.py suite/test_cli.py suite/test_directions.py
suite/test_trial.py suite/test_matching.py suite/test_pool.py
""".split()
"""Files that take longer than all others, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: where several processes share the work, none begins a long file when the others are done."""
    here = Path(__file__).parent
    rank = {here / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """How the processes of `-n` share the work, unless `--dist` says: by files, so that a fixture is made once."""
    if config.option.dist != "load":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            if file.startswith("tests/vllm/"):
                return "tests/vllm"  # one pool of engines
            return nodeid if test.startswith("test_the_whole_cube") else file  # minutes each, and without fixtures

    config.option.loadscopereorder = False
    return Files(config, log)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data sets."""
    folder = os.environ.get("REGRADE_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("REGRADE_DATA names no folder with the real data sets")
    return Path(folder)


@pytest.fixture(scope="session")
def warm_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store in which the small trial's anchors are trained already."""
    from suite.config.runtime import RuntimeSpec
    from suite.spec.trial import trial
    from suite.storage.store import Store
    from suite.training.anchors import prepare_anchors
    from tasks import TASKS
    from tests.support.small import SMALL

    root = tmp_path_factory.mktemp("warm")
    prepare_anchors(trial(SMALL), TASKS["pocket"].build(), Store(root).stages, RuntimeSpec())
    yield root
