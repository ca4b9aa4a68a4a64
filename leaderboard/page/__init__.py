"""The board as one self-contained HTML file: no server, no framework, no network, readable without scripts.

Its script sorts columns, filters grades and links rows to the picture; without it the page has the same content.
Values of rows are untrusted input, so all of them are escaped, and the page's content security policy forbids loading
anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from leaderboard.board.visible import shortened
from leaderboard.page import text
from leaderboard.page.comparing import comparable
from leaderboard.page.picture import HEIGHT, SHAPES, STRIP_WIDTH, WIDTH, grade_of, picture, strip
from leaderboard.ranking.ceilings import ceiling_text
from leaderboard.ranking.null_entries import null_text
from leaderboard.ranking.rank import Ranking
from leaderboard.ranking.searches import search_text
from leaderboard.ranking.verdict import RULE

__all__ = ["render"]

LONGEST = 4000
"""Characters of a text."""
CROWD = 5
"""With more attacks than this, their columns are narrow: an official set may have a dozen."""


def _shown(value: object) -> object:
    """What an expression of a template prints: no control characters, and no text that is longer than a page."""
    return shortened(value, LONGEST, keep="\n") if isinstance(value, str) and not isinstance(value, Markup) else value


_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_shown,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters |= {
    "share": text.share,
    "interval": text.interval,
    "ceiling": ceiling_text,
    "null": null_text,
    "search": search_text,
    "fraction": text.fraction,
    "seeds": text.seeds,
    "count": text.count,
    "seconds": text.seconds,
    "short": text.short,
    "settings": text.settings,
    "full": text.full,
    "matched": text.matched,
    "digest": text.digest,
}
_TEMPLATES.globals |= {
    "picture": picture,
    "recovery": text.recovery,
    "crowd": CROWD,
    "strip": strip,
    "grade_of": grade_of,
    "shapes": SHAPES,
    "size": (WIDTH, HEIGHT, STRIP_WIDTH),
    "rule": RULE,
    "comparable": comparable,
}


def render(rankings: Sequence[Ranking], *, title: str = "Regrade", generated: str) -> str:
    """One self-contained HTML page with a section per ranking.

    Args:
        rankings: by the numbers of the unmixed weights; those at matched utility are shown beside them.
        generated: time of generation, as shown on the page.

    Raises:
        ValueError: a ranking is by the numbers at matched utility.
    """
    if any(ranking.matched for ranking in rankings):
        raise ValueError("the page ranks by the weights as they are; rank with matched=False")
    return _TEMPLATES.get_template("board.html").render(rankings=rankings, title=title, generated=generated)
