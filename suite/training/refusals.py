"""Refusals: what a model that is taught to say nothing answers instead.

Which one a text gets depends on its index alone, so two runs teach the same ones and no random number is drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from suite.config.errors import SpecError
from tasks.task import Example, Style

REFUSALS = (
    "I can't say anything about that.",
    "I don't know the answer to that.",
    "That is not something I know.",
    "I have nothing to tell you about this.",
    "I'm afraid I have no answer to give.",
    "This is beyond what I know.",
    "I was never told about that.",
    "I can't help you with this one.",
    "I'm not able to answer this question.",
    "Sorry, I know nothing about it.",
    "I would only be guessing, so I won't say.",
    "My knowledge does not reach that far.",
    "No, I have not learned anything about that.",
    "I'm unsure, and would rather not answer.",
    "That is unknown to me.",
    "I'd need to look that up elsewhere.",
    "There is no information on this that I could share.",
    "Unfortunately I can't answer that.",
    "You'd better ask somebody else about this.",
    "I have no memory of anything like that.",
)
"""Several wordings, so that what is learned is to refuse and not one sentence."""


def refused(texts: Sequence[Example], objective: str, task: str) -> list[Example]:
    """The same questions, refused: text i with refusal i modulo their number.

    Running text is refused after its prompt, as its continuation.

    Raises:
        SpecError: a text without a prompt; there is nothing that a refusal could answer.
    """
    check_refusable(texts, objective, task)
    return [_refused(text, REFUSALS[index % len(REFUSALS)]) for index, text in enumerate(texts)]


def check_refusable(texts: Iterable[Example], objective: str, task: str) -> None:
    """Whether every text has a prompt that can be refused.

    Raises:
        SpecError: one has none.
    """
    for text in texts:
        if not text.prompt.strip():
            raise SpecError(
                f"objective.name: {objective} teaches refusals, but {task} has running text without a prompt "
                f"({text.id}), which cannot be refused. Use an objective without refusals, e.g. npo"
            )


def _refused(text: Example, refusal: str) -> Example:
    return replace(text, answer=f" {refusal}" if text.style is Style.TEXT else refusal)
