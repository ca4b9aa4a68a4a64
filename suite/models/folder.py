"""A model's folder, looked at before a library opens it: it may have been made by somebody who means harm.

Every file that a library would open has to be an ordinary one (a FIFO blocks whoever opens it, a device never ends) of
a size that its kind may have. What it says as JSON is read here in full, and what a library then makes of it ends, if
it fails, in a sentence that names the folder.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from suite.config.errors import ModelError, RegradeError
from tasks.plain_text import once

OPENED = (
    *(".json", ".jinja", ".model", ".txt", ".vocab", ".bpe", ".codes", ".tokenizer", ".tiktoken", ".spm"),
    ".safetensors",
)
"""Names of files that one of the libraries opens end with one of these."""

SETTINGS = (
    *("generation_config.json", "adapter_config.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json"),
)
TEMPLATES = "additional_chat_templates"
INDEX = "*.safetensors.index.json"

MIB = 2**20
LARGEST_TEMPLATE, LARGEST_CONFIG, LARGEST_SETTINGS = MIB, 4 * MIB, 16 * MIB
LARGEST_VOCABULARY, LARGEST_OTHER = 128 * MIB, 2048 * MIB
"""In bytes. The largest vocabularies in use take 50 MiB, the largest settings 5; any other JSON file is only hashed."""

DEEPEST = 32
"""Levels of JSON. No library's settings have more than six."""

MACHINERY = tuple(map(Path, ("/proc", "/sys", "/dev")))
"""Files there look ordinary and are not: some block, some never end."""

KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


def is_folder(name: str) -> bool:
    """Whether a name is that of a folder; a name that no path can have is not."""
    try:
        return Path(name).expanduser().is_dir()
    except (OSError, ValueError, RuntimeError):  # too long, with a NUL, not to be looked at, ~ of nobody
        return False


def check_files(folder: Path) -> None:
    """Check that each file that a library may open is an ordinary one, readable and of a reasonable size.

    Raises:
        ModelError: naming the file.
    """
    try:
        files = sorted(folder.iterdir())
        if (folder / TEMPLATES).is_dir():
            files += sorted((folder / TEMPLATES).iterdir())
    except OSError as error:
        raise ModelError(f"{folder}: cannot be read: {error.strerror}. Make it readable") from None
    for file in files:
        _check_file(file)
    for index in folder.glob(INDEX):
        _check_index(index)


def _check_file(file: Path) -> None:
    opened = file.name.endswith(OPENED)
    try:
        found = file.stat()
    except OSError as error:
        if not opened:
            return
        what = "is a link that leads nowhere" if file.is_symlink() else f"cannot be read: {error.strerror}"
        raise ModelError(f"{file}: {what}. Put an ordinary file in its place, or delete it") from None
    kind = stat.S_IFMT(found.st_mode)
    if kind != stat.S_IFREG and (opened or kind != stat.S_IFDIR):
        raise ModelError(f"{file}: is {KINDS.get(kind, 'no file')}, not an ordinary file. Delete it")
    if not opened or kind == stat.S_IFDIR:
        return
    if file.is_symlink() and any(file.resolve().is_relative_to(place) for place in MACHINERY):
        raise ModelError(f"{file}: leads to {file.resolve()}, which is no ordinary file. Delete it")
    if not os.access(file, os.R_OK):
        raise ModelError(f"{file}: cannot be read: Permission denied. Make it readable")
    if (limit := _largest(file)) and found.st_size > limit:
        raise ModelError(
            f"{file}: has {found.st_size} bytes, and such a file has {limit} at most. Put the right one there"
        )


def _largest(file: Path) -> int | None:
    """Bytes that a file may have; None for weights, which `size` compares with the model."""
    if file.suffix == ".safetensors":
        return None
    if file.suffix == ".jinja":
        return LARGEST_TEMPLATE
    if file.name == "config.json":
        return LARGEST_CONFIG
    if file.name in SETTINGS or file.match(INDEX):
        return LARGEST_SETTINGS
    if file.suffix == ".json" and "token" not in file.name and "vocab" not in file.name:
        return LARGEST_OTHER
    return LARGEST_VOCABULARY


def _check_index(file: Path) -> None:
    """The index says which files hold the weights. One that leads elsewhere is refused."""
    shards = read_settings(file).get("weight_map", {})
    if not isinstance(shards, dict):
        raise ModelError(f"{file}: weight_map is no mapping from tensors to files. Delete the index")
    for name, shard in shards.items():
        if not isinstance(shard, str) or shard != Path(shard).name or not shard.endswith(".safetensors"):
            raise ModelError(f"{file}: weight_map.{brief(name)} is {brief(shard)}, no safetensors file of this folder")


def read_settings(file: Path) -> dict[str, Any]:
    """A file's JSON, which has to be a mapping without a key given twice.

    Raises:
        ModelError: it is none, naming the file.
    """
    try:
        content = json.loads(
            file.read_bytes().decode("utf-8"), object_pairs_hook=once
        )  # of two libraries would read one each
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ModelError(f"{file}: is not UTF-8 (byte {error.start}). Save it as JSON in UTF-8") from None
    except RecursionError:
        raise ModelError(f"{file}: is nested too deeply to be the settings of a model") from None
    except ValueError as error:
        raise ModelError(f"{file}: is not valid JSON: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{file}: is no mapping of settings but {brief(content)}. It should be {{...}}")
    for level, _ in enumerate(_levels(content)):
        if level >= DEEPEST:
            raise ModelError(f"{file}: is nested too deeply to be the settings of a model")
    return content


def _levels(content: Any) -> Iterator[list[Any]]:
    """The containers of a JSON value, level by level."""
    level = [content]
    while level:
        yield level
        inner = (value for one in level for value in (one.values() if isinstance(one, dict) else one))
        level = [value for value in inner if isinstance(value, dict | list)]


def entries(content: Any, key: str = "", path: str = "") -> Iterator[tuple[str, str, Any]]:
    """Every value of settings with its dotted path and its key: that of the list, for a list's elements."""
    inner: Iterable[tuple[str, str, Any]]
    if isinstance(content, dict):
        inner = ((f"{path}.{name}" if path else name, name, value) for name, value in content.items())
    elif isinstance(content, list):
        inner = ((path, key, value) for value in content)
    else:
        return
    for at, name, value in inner:
        yield at, name, value
        yield from entries(value, name, at)


@contextmanager
def library(where: Path, what: str, kind: type[Exception] = ModelError) -> Iterator[None]:
    """Whatever a library raises while it reads a folder, as an error that names the folder and what could not be read.

    Raises:
        kind: quoting the library's error.
    """
    from transformers import dynamic_module_utils

    # Each call says trust_remote_code=False. This is for the calls that transformers makes of its own, in which it
    # would ask on the terminal, and execute the folder's code after a "y". With no seconds to wait it refuses instead.
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    except RegradeError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # Rust's, and no Exception
            raise
        if "trust_remote_code" in str(error):
            raise kind(
                f"{where}: its {what} needs code from the folder, and nothing that a model carries is executed. Take a "
                "model that transformers knows by itself"
            ) from None
        if isinstance(error, MemoryError):
            raise kind(f"{where}: the memory does not suffice for its {what} (MemoryError)") from None
        raise kind(f"{where}: its {what} cannot be read: {type(error).__name__}: {one_line(error)}") from None


def one_line(error: BaseException) -> str:
    """An error's message, in one line that is not too long."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]}..."


def brief(value: Any) -> str:
    """A value in a message: JSON, cut to a line's length."""
    if isinstance(value, dict | list) and value:
        return "a mapping" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and value.bit_length() > 256:
        return "a number of very many digits"
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
