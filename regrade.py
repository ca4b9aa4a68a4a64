"""The command `regrade`, also `python -m regrade`: sees to it that our own packages are the ones that are imported.

They have names that a file beside somebody's experiments may have too (`suite.py`, `tasks.py`), and Python looks into
the working directory first where `PYTHONPATH` has an empty entry, as `PYTHONPATH=$PYTHONPATH:/x` leaves one behind, or
where a module is run with `-m`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = str(Path(__file__).resolve().parent)


def _without_working_directory() -> None:
    """Take the working directory out of the path of this process and of those that it starts, unless we lie in it."""
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join(entry for entry in entries if entry)
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        here = os.path.realpath(os.getcwd())
    except FileNotFoundError:  # it was deleted
        return
    if here != HERE:
        sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or ".") != here]


def main() -> None:
    """Run the command."""
    try:
        _without_working_directory()
        from suite.cli import main as run
    except KeyboardInterrupt:  # nothing of ours is there yet that could say more
        print("regrade: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    run()


if __name__ == "__main__":
    main()
