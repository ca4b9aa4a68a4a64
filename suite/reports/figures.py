"""What all plots share: how an entry looks, a figure without a screen, and its file.

Names are foreign text: formulas are not set, control characters are written out, and long names are cut.
"""

from __future__ import annotations

import hashlib
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from leaderboard.board.visible import shortened
from leaderboard.ranking.rank import Entry
from leaderboard.storage import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# As on the page: colours that colour-blind readers can tell apart, and a marker per grade besides.
GRADES = {
    "second": ("#009E73", "s"),
    "first": ("#0072B2", "o"),
    "compressed": ("#E69F00", "D"),
    "zeroth": ("#D55E00", "^"),
    "hybrid": ("#AA4499", "*"),
}
OTHER = ("#555555", "o")
LINES = ("-", "--", ":", "-.")
"""Line styles that distinguish entries of one grade."""
LONGEST_NAME = 60
"""Characters of an entry's name."""


@contextmanager
def drawing() -> Iterator[None]:
    """Matplotlib without a screen, without formulas in foreign text, and without a word.

    It tells about its caches and of fonts, and warns of characters that the font lacks, which are drawn as boxes.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib

    matplotlib.use("Agg")
    with matplotlib.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def figure_of(width: float, height: float, panels: int = 1, sharey: bool = True) -> tuple[Figure, list[Axes]]:
    """A figure of so many inches, and its panels side by side."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, panels, figsize=(width, height), layout="constrained", sharey=sharey, squeeze=False
    )
    return figure, list(axes[0])


def write(figure: Figure, path: Path) -> Path:
    """The figure as SVG."""
    from matplotlib import pyplot

    content = BytesIO()
    figure.savefig(content, format="svg")
    pyplot.close(figure)
    replace_file(path, content.getvalue())
    return path


def style(entry: Entry) -> tuple[str, str]:
    """Colour and marker of an entry's grade."""
    return GRADES.get(entry.grade or "", OTHER)


def entry_name(entry: Entry) -> str:
    """An entry's name in a legend, which leaves out names that begin with an underscore."""
    return re.sub("^_", " _", shortened(entry.label, LONGEST_NAME))


def stem(task: str) -> str:
    """A task's name as the beginning of a file name."""
    stem = task.replace("/", "-")
    return stem if len(stem.encode()) <= 100 else f"{stem[:20]}-{hashlib.sha256(task.encode()).hexdigest()[:16]}"
