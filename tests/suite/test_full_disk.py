"""A store on a disk that is full, or whose files may not grow: it is said, and nothing is lost."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from suite.config.errors import StageError
from suite.storage.stages import StageStore
from tests.support.disks import small_disk


def write(folder: Path) -> dict:
    (folder / "out.txt").write_text("forgotten")
    return {"length": 9}


def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path):
    """A file size limit makes the kernel refuse writes as a full disk does (EFBIG; ENOSPC is made of it)."""
    code = f"""
import errno, resource, signal
from pathlib import Path
from suite.storage.stages import StageError, StageStore
store = StageStore(Path({str(tmp_path)!r}))
kept = store.run("kind", {{"a": 1}}, lambda f: (f / "x").write_bytes(b"1" * 100) and {{}})
def full(folder):
    try:
        (folder / "big").write_bytes(b"0" * 10**6)
    except OSError as error:
        raise OSError(errno.ENOSPC, "No space left on device") from error
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
try:
    store.run("kind", {{"a": 2}}, full)
except StageError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (10**9, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
assert store.get("kind", kept.key)
assert store.run("kind", {{"a": 2}}, lambda f: (f / "x").write_bytes(b"1") and {{"ok": 1}}).meta["ok"]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "the disk is full" in done.stdout
    assert str(tmp_path) in done.stdout


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four megabytes: more than is written to see whether a disk is full."""
    with small_disk(tmp_path / "small", "4m") as folder:
        yield folder


WRITERS = {
    "python": "(folder / 'big').write_bytes(bytes(2**23))",
    "numpy": "import numpy; numpy.save(folder / 'big.npy', numpy.zeros(2**20))",
    "pyarrow": "import pyarrow as pa, pyarrow.parquet as pq; "
    "pq.write_table(pa.table({'x': numpy.random.rand(2**20)}), folder / 'big.parquet')",
    "safetensors": "from safetensors.torch import save_file; import torch; "
    "save_file({'w': torch.zeros(2**21)}, folder / 'big.safetensors')",
    "torch": "import torch; torch.save(torch.zeros(2**21), folder / 'big.pt')",
    "wrapped": "\ntry:\n    (folder / 'big').write_bytes(bytes(2**23))\n"
    "except OSError as error:\n    raise RuntimeError('it went wrong') from error",
}
"""How libraries write more than the disk holds. Each reports it with an error of its own, or with an unclear one."""


@pytest.mark.parametrize("writer", WRITERS)
def test_whatever_a_library_says_of_a_full_disk_the_user_reads_that_it_is_full(full_disk, writer):
    import numpy

    store = StageStore(full_disk)
    kept = store.run("kind", {"a": 1}, write)
    with pytest.raises(StageError, match=rf"{full_disk}/stages/kind/.*: the disk is full. Nothing was lost"):
        store.run("kind", {"a": 2}, lambda folder: exec(WRITERS[writer], {"folder": folder, "numpy": numpy}))
    assert store.get("kind", kept.key) == kept
    assert len(list((full_disk / "stages" / "kind").iterdir())) == 2, "the stage and its manifest"
    assert store.run("kind", {"a": 2}, write).meta == {"length": 9}


def test_whatever_a_library_says_of_a_file_that_may_not_grow_the_user_reads_that_the_disk_is_full(tmp_path):
    """EFBIG, as of a limit of the process or the file system, from all libraries in one process."""
    code = f"""
import resource
from pathlib import Path
import numpy, torch
from suite.storage.stages import StageError, StageStore
store = StageStore(Path({str(tmp_path)!r}))
for name, writer in {WRITERS!r}.items():
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, -1))
    try:
        store.run("kind", {{"a": name}}, lambda folder: exec(writer, {{"folder": folder, "numpy": numpy}}))
    except StageError as error:
        assert "the disk is full" in str(error)
        print(name)
    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
    assert store.run("kind", {{"a": name}}, lambda f: (f / "x").write_bytes(b"1") and {{"ok": 1}}).meta["ok"]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == list(WRITERS), done.stderr


def test_another_failure_keeps_its_own_words(tmp_path):
    def fails(folder: Path) -> dict:
        write(folder)
        raise RuntimeError("unexpected pos 576 vs 534")

    with pytest.raises(RuntimeError, match="unexpected pos 576 vs 534"):
        StageStore(tmp_path).run("kind", {}, fails)


def test_on_a_full_disk_what_is_there_is_found_and_leases_are_done_without(full_disk):
    store = StageStore(full_disk)
    kept = store.run("kind", {"a": 1}, write)
    with pytest.raises(OSError, match="No space left"), open(full_disk / "filler", "wb", buffering=0) as file:
        while True:
            file.write(bytes(2**12))
    with store.leases.hold("trial") as held:
        assert not held
        assert store.run("kind", {"a": 1}, lambda folder: pytest.fail("computed twice")) == kept
        with pytest.raises(StageError, match="the disk is full"):
            store.run("kind", {"a": 2}, write)
