"""A query of the board by SQL, in a process of its own: `python -m leaderboard.board.query`.

A query may ask for anything: a recursion without end, a product of a trillion rows, a text of four gigabytes. DuckDB's
own limits do not cover all of that (a function that runs long inside one row is not interrupted, its texts are not
counted), but what a process takes, the operating system limits, and a process can be ended at any instant.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import duckdb
import pyarrow as pa

from leaderboard.board import views
from leaderboard.board.files import BoardError, Sound
from leaderboard.board.visible import visible

WRONG_QUERY: Final = (duckdb.ParserException, duckdb.BinderException, duckdb.CatalogException)
FAILED: Final = (duckdb.Error, pa.ArrowException, OSError, MemoryError)
"""What reading a file that is damaged inside may raise."""

ROWS: Final = 8192
"""Rows of the answer that are sent at a time."""
_WRONG, _FULL, _FAILING = 10, 11, 12
"""Exit codes of the process: a wrong query, one that needs too much memory, and one that failed while it ran."""
_BESIDE: Final = 1 << 29
"""Bytes of address space that threads reserve and do not use."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a query may take.

    Attributes:
        seconds: time, from its start to its answer.
        memory: bytes, of the computation and of the answer.
        threads: CPU threads.
    """

    seconds: float = 60.0
    memory: int = 2 << 30
    threads: int = 2


LIMITS: Final = Limits()


def answer(board: Path, text: str, files: Mapping[str, Sequence[Sound]], limits: Limits) -> pa.Table:
    """The answer to one SELECT over views of these files.

    Raises:
        BoardError: the query is wrong, or reached a limit.
        duckdb.Error: it failed while it ran, with DuckDB's message.
    """
    names = {
        table: [(os.fspath(file.path.relative_to(board)), file.columns) for file in sound]
        for table, sound in files.items()
    }
    request = {"text": text, "files": names, "memory": limits.memory, "threads": limits.threads}
    folder = board if board.is_dir() else None
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "leaderboard.board.query"],  # -P: no module of the board's folder is imported
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        env=environment,
    ) as process:
        try:
            rows, message = process.communicate(json.dumps(request).encode(), timeout=limits.seconds)
        except subprocess.TimeoutExpired:
            more = f"Board.sql(QUERY, Limits(seconds={2 * limits.seconds:g}))"
            reason = f"the query took more than {limits.seconds:g} s"
            raise BoardError(f"{board}: {reason}. What to do: ask for less, or allow more with {more}") from None
        finally:
            process.kill()
    if process.returncode == 0:
        with pa.ipc.open_stream(rows) as stream:
            return stream.read_all()
    why = visible(message.decode(errors="replace").strip(), keep="\n")
    if process.returncode == _FAILING:
        raise duckdb.Error(why)
    if process.returncode == _FULL or process.returncode < 0:
        more = f"Board.sql(QUERY, Limits(memory={2 * limits.memory}))"
        reason = f"the query, or its answer, needs more than {limits.memory:,} bytes of memory"
        raise BoardError(f"{board}: {reason}. What to do: ask for less, or allow more with {more}")
    raise BoardError(f"{board}: {why}")


def _serve(request: Mapping[str, Any], out: BinaryIO) -> None:
    """Write the answer to a request as an Arrow stream. The board is the current folder."""
    files = {
        table: [Sound(Path(name), (), tuple(columns)) for name, columns in sound]
        for table, sound in request["files"].items()
    }
    paths = ", ".join("'" + name.replace("'", "''") + "'" for sound in request["files"].values() for name, _ in sound)
    limits = {"memory_limit": f"{request['memory']}B", "threads": request["threads"]}
    with views.connected(**limits, temp_directory="", max_temp_directory_size="0B") as connection:
        views.create_views(connection, files)
        connection.execute(f"SET allowed_paths = [{paths}]")
        connection.execute("SET enable_external_access = false; SET lock_configuration = true")
        statements = connection.extract_statements(request["text"])
        if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
            raise BoardError("The board answers one SELECT at a time over trials, measurements and samples")
        reader = connection.sql(request["text"]).to_arrow_reader(ROWS)
        size = 0
        with pa.ipc.new_stream(out, reader.schema) as stream:
            for batch in reader:
                size += batch.nbytes
                if size > request["memory"]:
                    raise MemoryError
                stream.write_batch(batch)


def _limit_memory(memory: int) -> None:
    """Limit the address space of this process to what it has, and so many bytes more."""
    with suppress(OSError, ValueError):  # not on every system; DuckDB's own limit holds on all
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + memory + _BESIDE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _main() -> int:
    request = json.load(sys.stdin)
    _limit_memory(request["memory"])
    try:
        _serve(request, sys.stdout.buffer)
        sys.stdout.flush()
    except (MemoryError, duckdb.OutOfMemoryException):
        return _FULL
    except (BoardError, duckdb.PermissionException, *WRONG_QUERY) as error:
        print(error, file=sys.stderr, flush=True)
        return _WRONG
    except FAILED as error:
        print(error, file=sys.stderr, flush=True)
        return _FULL if "bad_alloc" in str(error) or "Out of Memory" in str(error) else _FAILING
    return 0


if __name__ == "__main__":
    os._exit(_main())  # without the end of Python, which needs memory too
