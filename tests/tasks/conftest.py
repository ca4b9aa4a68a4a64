"""Mirrors with invented text in the published layouts, at their full sizes; written once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.published import tofu_tables, write_all, write_tofu


@pytest.fixture(scope="session")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for REGRADE_DATA that has every benchmark."""
    return write_all(tmp_path_factory.mktemp("mirror"))


@pytest.fixture
def mirrored(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, and the environment says so."""
    monkeypatch.setenv("REGRADE_DATA", str(mirror))
    return mirror


@pytest.fixture(name="write_tofu")
def tofu_writer(tmp_path: Path) -> Callable[..., Path]:
    """Writes a mirror of forget01 into the test's own folder: `write_tofu(form)`, with changed tables by name."""

    def write(form: str = "json", **changed: list[dict[str, Any]]) -> Path:
        return write_tofu(tmp_path / form, form, {**tofu_tables([1]), **changed})

    return write
