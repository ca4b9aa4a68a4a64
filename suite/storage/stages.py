"""The stage store: what was computed once is not computed again, by anybody who shares the folder.

A stage's key is the SHA-256 of what its result depends on. Its files are written into a folder of their own and become
visible by one manifest, published put-if-absent with a hard link, which is atomic on local disks and on NFS alike: the
first writer wins and everybody uses the published bytes. A writer that dies leaves a folder that no manifest names.

Leases only save work: whoever waits for one computes the stage itself when the holder goes silent.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suite.config.canonical import digest
from suite.storage.leases import Leases

ABANDONED_AFTER = 24 * 3600.0
"""Seconds after which a folder that no manifest names is taken for a dead writer's."""


class StageError(RuntimeError):
    """A stored result cannot be read or written. The message names the file and what to do."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A published stage: its key, the folder with its files, and what it says of itself."""

    kind: str
    key: str
    folder: Path
    meta: Mapping[str, Any]

    def file(self, name: str) -> Path:
        return self.folder / name


class StageStore:
    """Stages under one folder, shared by any number of processes and machines.

    Attributes:
        computed, reused: keys of the stages that this object computed, and found published, by kind.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.leases = Leases(root / "leases")
        self.computed: dict[str, list[str]] = {}
        self.reused: dict[str, set[str]] = {}

    def get(self, kind: str, key: str) -> Artifact | None:
        """The published stage, or None.

        Raises:
            StageError: a file is missing or cut short.
        """
        path = self._manifest(kind, key)
        try:
            manifest = json.loads(path.read_bytes())
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
        """The published stage, or None; counted as reused."""
        artifact = self.get(kind, key)
        if artifact and key not in self.computed.get(kind, ()):
            self.reused.setdefault(kind, set()).add(key)
        return artifact

    def run(self, kind: str, inputs: Mapping[str, Any], compute: Callable[[Path], Mapping[str, Any]]) -> Artifact:
        """The stage that depends on `inputs`, computed by `compute` if nobody has published it.

        Args:
            compute: writes the stage's files into the folder that it is given and returns what the stage says of
                itself (JSON).
        """
        key = self.key(kind, inputs)
        if artifact := self.find(kind, key):
            return artifact
        with self.leases.hold(f"{kind}-{key}", until=lambda: self._manifest(kind, key).exists()):
            if artifact := self.find(kind, key):
                return artifact
            with self._workplace(kind, key) as folder:
                meta = compute(folder)
                artifact = self._publish(kind, key, folder, inputs, meta)
        self.computed.setdefault(kind, []).append(key)
        return artifact

    def damaged(self) -> list[str]:
        """What is wrong with published stages, a sentence each."""
        found = []
        for manifest in sorted((self.root / "stages").glob("*/*.json")):
            if manifest.name.startswith("."):
                continue
            try:
                self.get(manifest.parent.name, manifest.stem)
            except StageError as error:
                found.append(str(error))
        return found

    @staticmethod
    def key(kind: str, inputs: Mapping[str, Any]) -> str:
        return digest({"stage": kind, **inputs})

    def _manifest(self, kind: str, key: str) -> Path:
        return self.root / "stages" / kind / f"{key}.json"

    @contextmanager
    def _workplace(self, kind: str, key: str) -> Iterator[Path]:
        parent = self.root / "stages" / kind
        folder = parent / f"{key[:16]}-{uuid.uuid4().hex[:12]}"
        try:
            self._sweep(parent)
            folder.mkdir(parents=True)
            yield folder
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StageError(
                    f"{folder}: the disk is full. Nothing was lost: free some space, or move the store, and run again"
                ) from None
            raise
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _publish(
        self, kind: str, key: str, folder: Path, inputs: Mapping[str, Any], meta: Mapping[str, Any]
    ) -> Artifact:
        files = {
            path.relative_to(folder).as_posix(): _seal(path) for path in sorted(folder.rglob("*")) if path.is_file()
        }
        manifest = {"key": key, "inputs": inputs, "folder": folder.name, "files": files, "meta": meta}
        path = self._manifest(kind, key)
        draft = path.with_name(f".{folder.name}.json")
        try:
            with open(draft, "w") as file:
                json.dump(manifest, file, indent=1, sort_keys=True, allow_nan=False)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(draft, path)
            except FileExistsError:  # another writer was first: its bytes are the stage
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            draft.unlink(missing_ok=True)
        artifact = self.get(kind, key)
        assert artifact is not None
        return artifact

    def _sweep(self, parent: Path) -> None:
        """Remove folders that writers left behind when they were killed."""
        if not parent.is_dir():
            return
        named = None
        for folder in parent.iterdir():
            if not folder.is_dir() or time.time() - folder.stat().st_mtime < ABANDONED_AFTER:
                continue
            if named is None:
                named = {json.loads(manifest.read_bytes())["folder"] for manifest in parent.glob("*.json")}
            if folder.name not in named:
                shutil.rmtree(folder, ignore_errors=True)


def _seal(path: Path) -> dict[str, Any]:
    """Flush a file to disk and describe it."""
    digest = hashlib.sha256()
    with open(path, "rb+") as file:
        while block := file.read(1 << 20):
            digest.update(block)
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}
