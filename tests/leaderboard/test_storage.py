"""How bytes become visible: whole or not at all, the first writer's, whoever dies and wherever the disk ends."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leaderboard.storage import DiskFull, FolderStorage, NotWritable, has_hard_links, replace_file
from tests.support import storage_writers
from tests.support.disks import small_disk
from tests.support.storage_writers import NAMES, author, content, race, read, write_for_ever

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def storage(tmp_path: Path) -> FolderStorage:
    return FolderStorage(tmp_path / "root")


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    with small_disk(tmp_path / "small", "1m") as folder:
        yield folder


@given(
    st.lists(
        st.tuples(st.sampled_from(["put", "delete"]), st.sampled_from(["a", "f/a", "f/b"]), st.binary(max_size=8)),
        max_size=20,
    )
)
@settings(max_examples=60, deadline=None)
def test_names_behave_like_a_dictionary_that_never_overwrites(steps: list[tuple[str, str, bytes]]):
    with tempfile.TemporaryDirectory() as folder:
        storage, model = FolderStorage(Path(folder)), {}
        for verb, name, data in steps:
            if verb == "put":
                assert storage.put_if_absent(name, data) == (name not in model)
                model.setdefault(name, data)
            else:
                storage.delete(name)
                model.pop(name, None)
            assert {known for known in ("a", "f/a", "f/b") if storage.exists(known)} == model.keys()
        assert {name: read(storage, name) for name in model} == model
        assert list(storage.list("f/")) == sorted(name for name in model if name.startswith("f/"))
        assert not list(Path(folder).rglob(".*")), "temporary files are gone"


def test_listing_goes_by_beginning_and_end_and_leaves_out_what_is_not_done(storage: FolderStorage):
    for name in ("a/key1.json", "a/key2.json", "a/key1-folder", "b/key1.json", "lease-1"):
        storage.put_if_absent(name, b"")
    (storage.root / "a" / ".host-1-00.tmp").touch()
    assert storage.list("a/", ".json") == ["a/key1.json", "a/key2.json"]
    assert storage.list("a/key1") == ["a/key1-folder", "a/key1.json"]
    assert storage.list("lease") == ["lease-1"]
    assert storage.list() == ["a", "b", "lease-1"]
    assert storage.list("nowhere/") == []


def test_a_version_changes_with_every_touch_and_every_other_content(storage: FolderStorage):
    storage.put_if_absent("a", b"1")
    versions = [storage.version("a")]
    os.utime(storage.path("a"), (1, 1))
    versions.append(storage.version("a"))
    storage.touch("a")
    versions.append(storage.version("a"))
    assert len(set(versions)) == 3


def test_of_processes_at_once_one_wins_and_all_read_its_bytes(tmp_path: Path):
    barrier, results = SPAWN.Barrier(3), SPAWN.Queue()
    writers = [SPAWN.Process(target=race, args=(str(tmp_path), f"writer{n}", barrier, results)) for n in range(3)]
    for writer in writers:
        writer.start()
    told = dict(results.get(timeout=120) for _ in writers)
    for writer in writers:
        writer.join(60)
    for name in NAMES:
        winners = [writer for writer, found in told.items() if found[name][0]]
        assert len(winners) == 1
        assert {found[name][1] for found in told.values()} == set(winners)


def test_processes_killed_at_any_instant_leave_whole_files_that_never_change(tmp_path: Path):
    """Writers are killed in mid-work, over and over; whatever was visible once stays as it was."""
    storage, rng, seen = FolderStorage(tmp_path), random.Random(0), {}
    for round_ in range(4):
        writers = [SPAWN.Process(target=write_for_ever, args=(str(tmp_path), f"w{round_}{n}")) for n in range(2)]
        for writer in writers:
            writer.start()
        goal = len(seen) + rng.randrange(1, 40)
        while len(storage.list("folder/")) < min(goal, len(NAMES)):
            time.sleep(rng.random() / 200)
        for writer in writers:
            writer.kill()
            writer.join(60)
        for name in storage.list("folder/"):
            found = read(storage, name)
            assert author(found) == seen.setdefault(name, author(found))
    assert [storage.put_if_absent(name, content("last", name)) for name in NAMES] == [n not in seen for n in NAMES]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("call", ["fsync", "link", "unlink"])
def test_a_writer_killed_at_a_step_has_published_all_or_nothing(tmp_path: Path, call: str, when: str):
    died = subprocess.run([sys.executable, storage_writers.__file__, str(tmp_path), call, when], capture_output=True)
    assert died.returncode == -9, died.stderr
    storage = FolderStorage(tmp_path)
    published = (call, when) in {("link", "after"), ("unlink", "before"), ("unlink", "after")}
    assert storage.list("folder/") == (["folder/name"] if published else [])
    assert storage.put_if_absent("folder/name", content("next", "name")) is not published
    assert author(read(storage, "folder/name")) == ("dead" if published else "next")


def test_bytes_are_on_disk_before_they_have_a_name_and_the_name_before_the_answer(
    storage: FolderStorage, monkeypatch: pytest.MonkeyPatch
):
    order: list[tuple[str, bool]] = []
    fsync, link = os.fsync, os.link

    def synced(descriptor: int) -> None:
        order.append(("fsync", stat.S_ISDIR(os.fstat(descriptor).st_mode)))
        fsync(descriptor)

    def linked(*args: Any) -> None:
        order.append(("link", False))
        link(*args)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "link", linked)
    storage.put_if_absent("f/a", b"1")
    source = storage.path("source")
    source.write_bytes(b"2")
    storage.put_if_absent("f/b", source)
    assert order == [("fsync", False), ("link", False), ("fsync", True)] * 2


def lose_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS as it is when the answer to a link is lost: the link is made, and asked again the name is taken."""
    link = os.link

    def lost(*args: Any) -> None:
        link(*args)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    monkeypatch.setattr(os, "link", lost)


def test_a_link_whose_answer_is_lost_is_a_link(storage: FolderStorage, monkeypatch: pytest.MonkeyPatch):
    storage.put_if_absent("taken", b"first")
    storage.path("source").write_bytes(b"linked")
    lose_answers(monkeypatch)
    assert storage.put_if_absent("a", b"ours")
    assert not storage.put_if_absent("a", b"ours"), "the same bytes, and another writer's"
    assert not storage.put_if_absent("taken", b"second")
    assert storage.put_if_absent("b", storage.path("source"))
    assert not storage.put_if_absent("b", storage.path("source"))
    assert (read(storage, "a"), read(storage, "b"), read(storage, "taken")) == (b"ours", b"linked", b"first")


def test_another_writer_between_look_and_link_is_first(storage: FolderStorage, monkeypatch: pytest.MonkeyPatch):
    link = os.link

    def overtaken(source: Path, path: Path) -> None:
        path.write_bytes(b"theirs")
        link(source, path)

    monkeypatch.setattr(os, "link", overtaken)
    assert not storage.put_if_absent("a", b"ours")
    assert read(storage, "a") == b"theirs"
    assert [path.name for path in storage.root.iterdir()] == ["a"]


def test_what_is_damaged_is_replaced(storage: FolderStorage):
    storage.put_if_absent("a", b"damag")
    assert not storage.put_if_absent("a", b"sound", damaged=lambda: False)
    assert storage.put_if_absent("a", b"sound", damaged=lambda: read(storage, "a") != b"sound")
    assert not storage.put_if_absent("a", b"other", damaged=lambda: read(storage, "a") != b"sound")
    assert read(storage, "a") == b"sound"


def refuse_links(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refused(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refused)


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EXDEV, errno.EMLINK])
def test_without_hard_links_nothing_is_put_and_the_reason_is_told(
    storage: FolderStorage, monkeypatch: pytest.MonkeyPatch, code: int
):
    storage.put_if_absent("there", b"1")
    assert has_hard_links(storage.root)
    refuse_links(monkeypatch, code)
    with pytest.raises(NotWritable, match=r"root/a: not written, its file system has no hard links.*local disk.*NFS"):
        storage.put_if_absent("a", b"1")
    assert not has_hard_links(storage.root)
    assert not storage.put_if_absent("there", b"2"), "what is there can be used all the same"
    assert [path.name for path in storage.root.iterdir()] == ["there"]


def test_temporary_files_of_the_dead_are_removed_and_other_files_are_not(storage: FolderStorage):
    storage.put_if_absent("a", b"")
    dead = storage.root / f".host.example-12-{'0' * 32}.tmp"
    others = [storage.root / name for name in (".cache.tmp", f".fresh-12-{'1' * 32}.tmp", "b.tmp")]
    for path in (dead, *others):
        path.touch()
    for path in (dead, others[0], others[2]):
        os.utime(path, (1, 1))
    storage.put_if_absent("c", b"")
    assert not dead.exists()
    assert all(path.exists() for path in others)


def test_a_linked_file_may_be_old(storage: FolderStorage):
    """Its age is the source's, so it never goes through a temporary name that others would take for a dead writer's."""
    source = storage.root.parent / "source"
    source.write_bytes(b"1")
    os.utime(source, (1, 1))
    assert storage.put_if_absent("a", source)
    assert storage.path("a").samefile(source)


def test_a_full_disk_keeps_what_was_there(full_disk: Path):
    storage, page = FolderStorage(full_disk), full_disk / "page.html"
    storage.put_if_absent("a", b"1")
    replace_file(page, "before")
    for attempt in (lambda: storage.put_if_absent("b", bytes(2**21)), lambda: replace_file(page, bytes(2**21))):
        with pytest.raises(DiskFull, match=r"No space left on device.*make room there and run again"):
            attempt()
        assert sorted(path.name for path in full_disk.iterdir()) == ["a", "page.html"]
    assert page.read_text() == "before"
    assert storage.put_if_absent("b", b"smaller")


def test_an_output_is_replaced_as_a_whole_with_its_rights_and_behind_links(tmp_path: Path):
    page, link = tmp_path / "there" / "page.html", tmp_path / "link.html"
    replace_file(page, "one")
    page.chmod(0o640)
    link.symlink_to(page)
    replace_file(link, "two")
    assert (page.read_text(), stat.S_IMODE(page.stat().st_mode), link.is_symlink()) == ("two", 0o640, True)
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]


def test_what_is_no_file_is_written_to_and_not_replaced(tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    replace_file(pipe, "through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize("place", ["file/page.html", "folder", "/proc/page.html"])
def test_a_place_that_cannot_be_written_is_told(tmp_path: Path, place: str):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(NotWritable, match=r"not written.*name another place"):
        replace_file(tmp_path / place, "x")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def test_storage_needs_nothing_heavy():
    code = "import leaderboard.storage, suite.storage.stages, suite.storage.leases, suite.storage.location, sys;"
    code += "assert not {'torch', 'ray', 'transformers', 'duckdb', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
