"""The folder of a store, from its name on the command line. Imports nothing heavy: every such command starts here."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote

from suite.config.errors import SpecError

_URL = re.compile(r"([a-z][a-z0-9+.-]+):/(/[^/]*(?=/|$))?", re.IGNORECASE)
"""A scheme of two letters or more (one is a Windows drive), and a machine. `Path` collapses slashes into one."""


def store_folder(named: str | os.PathLike[str]) -> Path:
    """The folder of a store that is named by a path or by `file:///path`.

    Raises:
        SpecError: it is a URL of another kind.
    """
    text = os.fspath(named)
    url = _URL.match(text)
    if url is None or (isinstance(named, str) and url[2] is None):
        return Path(text).expanduser().absolute()
    if url[1].lower() != "file":
        raise SpecError(
            f"store {text}: object stores and other addresses are not supported yet. Name a local folder, or one that "
            "is mounted on every machine (NFS)"
        )
    path = text[url.end() :] if url[2] else f"/{text[url.end() :]}"
    if url[2] not in (None, "/", "/localhost") or not path.startswith("/"):
        raise SpecError(f"store {text}: names a machine. Write file:///PATH with three slashes, or the path itself")
    return Path(unquote(path))
