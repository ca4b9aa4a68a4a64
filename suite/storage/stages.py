"""The stage store: a cache of computations, shared by all processes that use the same folder.

A stage's key is the SHA-256 of what its result depends on. Its files are written into a folder of their own and become
visible through one manifest, which is created under the stage's name unless it exists (`leaderboard.storage`): the
first writer wins and all processes use its bytes. A writer that dies leaves a folder that no manifest names.

Leases only save work: a process that waits for one computes the stage itself when the holder sends no heartbeat.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leaderboard.storage import FolderStorage, disk_is_full, sync_folder
from suite.config.canonical import digest
from suite.config.errors import StageError
from suite.storage.leases import Leases

ABANDONED_AFTER = 24 * 3600.0
"""Seconds without a heartbeat after which a folder that no manifest names counts as abandoned by a dead writer. A day
tolerates clocks that differ, and networks that are down for hours."""

UNFINISHED, UNFINISHED_AFTER = "-unfinished", 30 * ABANDONED_AFTER
"""Ending of the folders that computations go on from, and the age at which nobody will: a month."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A published stage: its key, the folder with its files, and its metadata."""

    kind: str
    key: str
    folder: Path
    meta: Mapping[str, Any]

    def file(self, name: str) -> Path:
        return self.folder / name


class StageStore:
    """Stages under one folder, shared by any number of processes and machines.

    Attributes:
        computed, reused: keys of the stages that this object computed, and that it found in the store, by kind.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files = FolderStorage(root / "stages")
        self._swept: set[str] = set()
        self.leases = Leases(root / "leases")
        self.computed: dict[str, list[str]] = {}
        self.reused: dict[str, set[str]] = {}

    def get(self, kind: str, key: str) -> Artifact | None:
        """The published stage, or None.

        Raises:
            StageError: a file is missing or cut short.
        """
        path = self._files.path(_manifest(kind, key))
        try:
            with self._files.open(_manifest(kind, key)) as file:
                manifest = json.load(file)
        except FileNotFoundError:
            return None
        except ValueError:
            raise StageError(f"{path}: damaged. Delete it and run again; only this stage is computed anew") from None
        folder = path.parent / manifest["folder"]
        for name, entry in manifest["files"].items():
            try:
                size = (folder / name).stat().st_size
            except OSError:
                size = -1
            if size != entry["bytes"]:
                what = "is missing" if size < 0 else f"is cut short: {size} of {entry['bytes']} bytes"
                raise StageError(
                    f"{folder / name}: {what}. Delete {path} and run again; only this stage is computed anew"
                )
        return Artifact(kind, key, folder, manifest["meta"])

    def find(self, kind: str, key: str) -> Artifact | None:
        """The published stage, counted as reused, or None."""
        artifact = self.get(kind, key)
        if artifact and key not in self.computed.get(kind, ()):
            self.reused.setdefault(kind, set()).add(key)
        return artifact

    def run(self, kind: str, inputs: Mapping[str, Any], compute: Callable[[Path], Mapping[str, Any]]) -> Artifact:
        """The stage that depends on `inputs`, computed by `compute` if it is not in the store.

        Args:
            compute: writes the stage's files into the folder that it is given and returns the stage's metadata (JSON).

        Raises:
            StageError: a stored file is damaged, or the disk is full.
            StorageError: the store cannot be written to.
        """
        key = self.key(kind, inputs)
        if artifact := self.find(kind, key):
            return artifact
        with self.leases.hold(f"{kind}-{key}", until=lambda: self._files.exists(_manifest(kind, key))):
            if artifact := self.find(kind, key):
                return artifact
            with self._new_folder(kind, key) as folder:
                meta = compute(folder)
                artifact = self._publish(kind, key, folder, inputs, meta)
            shutil.rmtree(self.unfinished(kind, inputs), ignore_errors=True)
        self.computed.setdefault(kind, []).append(key)
        return artifact

    def unfinished(self, kind: str, inputs: Mapping[str, Any]) -> Path:
        """The folder in which a computation may save what it needs to go on after a kill; deleted once the stage is
        published, and when nobody has written into it for long."""
        return self._files.path(f"{kind}/{self.key(kind, inputs)[:16]}{UNFINISHED}")

    def damaged(self) -> list[str]:
        """Files of published stages that are missing or have another size, one sentence each."""
        damage = []
        for kind in self._files.list():
            for manifest in self._files.list(f"{kind}/", ".json"):
                try:
                    self.get(kind, Path(manifest).stem)
                except StageError as error:
                    damage.append(str(error))
        return damage

    @staticmethod
    def key(kind: str, inputs: Mapping[str, Any]) -> str:
        return digest({"stage": kind, **inputs})

    @contextmanager
    def _new_folder(self, kind: str, key: str) -> Iterator[Path]:
        """A new folder to compute a stage in; deleted if the computation fails."""
        name = f"{key[:16]}-{uuid.uuid4().hex[:12]}"
        folder = self._files.path(f"{kind}/{name}")
        try:
            self._sweep(kind)
            self._files.make_folder(f"{kind}/{name}")
            with self.leases.kept_fresh(folder):
                yield folder
        except BaseException as error:
            if self._named(name, self._files.list(f"{kind}/{key}", ".json")):
                raise  # the stage was published before the error, so others may use the folder
            full = isinstance(error, Exception) and disk_is_full(error, folder)
            shutil.rmtree(folder, ignore_errors=True)
            if full:
                raise StageError(
                    f"{folder}: the disk is full. Nothing was lost: free some space, or move the store, and run again"
                ) from error
            raise

    def _publish(
        self, kind: str, key: str, folder: Path, inputs: Mapping[str, Any], meta: Mapping[str, Any]
    ) -> Artifact:
        content = sorted(folder.rglob("*"))
        files = {path.relative_to(folder).as_posix(): _seal(path) for path in content if path.is_file()}
        for inner in (*filter(Path.is_dir, content), folder):
            sync_folder(inner)
        manifest = {"key": key, "inputs": inputs, "folder": folder.name, "files": files, "meta": meta}
        text = json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False)
        if not self._files.put_if_absent(_manifest(kind, key), text.encode()):
            shutil.rmtree(folder, ignore_errors=True)  # another writer was first: its bytes are the stage
        artifact = self.get(kind, key)
        assert artifact is not None
        return artifact

    def _sweep(self, kind: str) -> None:
        """Remove folders that killed writers left behind; once per kind, since there may be thousands.

        A worker touches its folder whenever it touches its lease. The lease is checked besides: it reveals workers that
        are suspended, and those of earlier versions, which did not touch their folders.
        """
        if kind in self._swept:
            return
        self._swept.add(kind)
        manifests: defaultdict[str, list[str]] = defaultdict(list)
        for name in self._files.list(f"{kind}/", ".json"):
            manifests[Path(name).name[:16]].append(name)
        for name in self._files.list(f"{kind}/"):
            folder, key = self._files.path(name), Path(name).name.partition("-")[0]
            with suppress(FileNotFoundError):  # another worker sweeps too
                after = UNFINISHED_AFTER if folder.name.endswith(UNFINISHED) else ABANDONED_AFTER
                if time.time() - folder.stat().st_mtime < after or not folder.is_dir():
                    continue
                if self._named(folder.name, manifests[key]) or self.leases.at_work(f"{kind}-{key}", ABANDONED_AFTER):
                    continue
                # A worker that released its lease meanwhile has published; so manifests are checked last.
                if not self._named(folder.name, self._files.list(f"{kind}/{key}", ".json")):
                    shutil.rmtree(folder, ignore_errors=True)

    def _named(self, folder: str, manifests: Iterable[str]) -> bool:
        """Whether one of the manifests names the folder, or is damaged, so that it may name it."""
        for name in manifests:
            try:
                with self._files.open(name) as file:
                    if json.load(file)["folder"] == folder:
                        return True
            except FileNotFoundError:
                continue  # deleted since it was listed
            except (OSError, ValueError, KeyError, TypeError):
                return True
        return False


def _manifest(kind: str, key: str) -> str:
    return f"{kind}/{key}.json"


def _seal(path: Path) -> dict[str, Any]:
    """Flush a file to disk and return its size and digest."""
    digest = hashlib.sha256()
    with open(path, "rb+") as file:
        while block := file.read(1 << 20):
            digest.update(block)
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}
