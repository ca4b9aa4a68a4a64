"""Makes the helpers beside the tests importable, also in the processes that a test starts, and registers their task."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module", autouse=True)
def paper_task() -> Iterator[None]:
    """The task of `board_rows`: its attack set stays as it is, whatever becomes of the bundled one."""
    from board_rows import TASK

    from tasks import TASKS

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, TASK.name, TASK)
        yield
