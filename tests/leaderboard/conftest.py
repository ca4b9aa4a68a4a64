"""Makes the helpers beside the tests importable, in processes that a test starts too, and registers their tasks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module", autouse=True)
def paper_tasks() -> Iterator[None]:
    """The tasks of `board_rows`: their attack sets stay as they are, whatever becomes of the bundled ones."""
    from board_rows import TASK, WIDE

    from tasks import TASKS

    with pytest.MonkeyPatch.context() as patch:
        for task in (TASK, WIDE):
            patch.setitem(TASKS, task.name, task)
        yield
