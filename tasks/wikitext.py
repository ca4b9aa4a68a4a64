"""WikiText-2, raw: paragraphs of Wikipedia (Merity et al. 2016, arXiv 1609.07843).

The `train` split is the retain set of tasks without a retain corpus of their own; perplexity is measured on the `test`
split. (Published code has regularised on the `test` split.)
"""

from __future__ import annotations

from tasks.files import Row, Source

HUB = "Salesforce/wikitext"
REVISION = "b08601e04326c79dfdd32d625aee71d232d685c3"
CONFIG = "wikitext-2-raw-v1"
ROWS = {"train": 36_718, "test": 4_358}

SHORTEST = 50
"""A paragraph must be longer than this, in characters; headings and blank rows are shorter."""


def source() -> Source:
    return Source.find("wikitext", HUB, REVISION)


def paragraphs(split: str) -> list[Row]:
    """The split's paragraphs of more than 50 characters, unchanged and in order.

    Raises:
        TaskError: the data is not available, or not as published.
    """
    rows = source().table(CONFIG, split, rows=ROWS[split], blank=("text",))
    return [row for row in rows if len(row["text"]) > SHORTEST]
