"""Registers the tasks that the tests of the board are about."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tasks import TASKS
from tests.support.board_rows import TASK, WIDE


@pytest.fixture(scope="module", autouse=True)
def paper_tasks() -> Iterator[None]:
    """The tasks of `board_rows`: their attack sets stay the same when those of real tasks change."""
    with pytest.MonkeyPatch.context() as patch:
        for task in (TASK, WIDE):
            patch.setitem(TASKS.own, task.name, task)
        yield
