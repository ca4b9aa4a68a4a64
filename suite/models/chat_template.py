"""A tokenizer's chat template, with the arguments that it is given and without today's date.

Llama 3's template writes the date, Qwen3's lets the model think before it answers unless it is told not to, many write
a system prompt of their own. What they are given is part of the model's identity (`args`), so no prompt changes by
itself. What the template writes around an answer is read off a short conversation.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from suite.config.errors import UnsuitableError
from suite.config.settings import nearest
from suite.models.folder import one_line
from suite.models.rehearsal import ANSWER, QUESTION, rehearse_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DATE, DATE_FORMAT = "26 Jul 2024", "%d %b %Y"
"""The date that templates are told by default: the one that Llama 3.1's and 3.2's fall back to."""

WORDS = r"(?:\w+:)?(?:think(?:ing)?|thoughts?|reasoning)"
OPENS = re.compile(rf"<\|?(?:begin_of_)?{WORDS}\|?>|\[{WORDS}\]", re.IGNORECASE)
CLOSES = re.compile(rf"<\|?(?:/|end_of_){WORDS}\|?>|\[/{WORDS}\]", re.IGNORECASE)
"""The beginning and the end of a block of thoughts."""

Plain = str | int | float | bool


class ChatTemplate:
    """A chat template with its arguments.

    Attributes:
        args: the arguments in force: those that were given, the date where the template writes one, and no thinking
            where it can be turned off.
        header: what a prompt lacks of the text before an answer (a template may leave out the answer's header).
        lead: spaces between the prompt and an answer.
        digest: eight characters that stand for its text and `args`.
        endings: text after an answer: at the end of a conversation, and up to the next question.
        written: a conversation as the template writes it.

    Raises:
        UnsuitableError: the template fails, leaves texts out, takes no such argument, or lets the model think first.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, given: Mapping[str, Plain]) -> None:
        self.tokenizer = tokenizer
        which = f"the chat template of {tokenizer.name_or_path or 'the tokenizer'}"
        self._where = f"model.template: {which}"
        source = _source(tokenizer, self._where)
        names = set(re.findall(r"[A-Za-z_]\w*", source))
        dated = bool({"date_string", "strftime_now"} & names)
        self.args: dict[str, Plain] = dict(given)
        if dated:
            self.args.setdefault("date_string", DATE)
        if "enable_thinking" in names:
            self.args.setdefault("enable_thinking", False)
        for name in self.args.keys() - names - {"system", *(["date_string"] if dated else [])}:
            raise UnsuitableError(
                f"model.template_args.{name}: {which} reads no such argument.{nearest(name, names)} Take it out"
            )
        told = json.dumps([source, dict(sorted(self.args.items()))], ensure_ascii=True)
        self.digest = hashlib.sha256(told.encode()).hexdigest()[:8]
        self._date = datetime.strptime(str(self.args.get("date_string", DATE)), DATE_FORMAT)
        self._values: dict[str, Any] = {name: value for name, value in self.args.items() if name != "system"}
        self.system = [{"role": "system", "content": str(self.args["system"])}] if "system" in self.args else []
        rehearse_template(tokenizer, self._values, self._date, self.system)
        self._read_turns(thinks=any(given.get(name) and "think" in name for name in given))

    def render(self, messages: Sequence[dict[str, str]], *, answers: bool = True) -> str:
        """The text of a conversation.

        Args:
            answers: whether the model's turn is next.

        Raises:
            UnsuitableError: the template refuses it.
        """
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages),
                add_generation_prompt=answers,
                tokenize=False,
                strftime_now=self._date.strftime,
                **self._values,
            )
        except Exception as error:  # a template may raise whatever it likes
            raise UnsuitableError(
                f"{self._where} refuses a conversation of {len(messages)} turns: "
                f"{one_line(error)}. Use model.template=plain"
            ) from None
        return str(text)  # as tokenize=False says

    def _read_turns(self, thinks: bool) -> None:
        """Read off a short conversation what is around an answer.

        Args:
            thinks: whether the model was asked to think.
        """
        question, answer = {"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}
        prompt = self.render([*self.system, question])
        if self.system and self.system[0]["content"].strip() not in prompt:
            raise UnsuitableError(
                f"model.template_args.system: {self._where.partition(': ')[2]} leaves it out. Take it out"
            )
        if QUESTION not in prompt:
            raise self._rewrites("question", "question")
        said = [self._tried([*self.system, question, answer]), self._tried([*self.system, question, answer, question])]
        whole = next((text for text in said if ANSWER in text), "")
        if any(said) and not whole:
            raise self._rewrites("conversation", "answer")
        before = whole[: whole.find(ANSWER)] if whole else ""
        gap = before[len(prompt) :] if before.startswith(prompt) else ""
        opened = prompt[prompt.rfind(QUESTION) + len(QUESTION) :]
        if not thinks and (_open(opened) or OPENS.search(gap)):
            raise UnsuitableError(
                f"{self._where} lets the model think before it answers, and its thoughts would be taken for the "
                "answer. Turn them off (model.template_args; the model's card names the argument), or use "
                "model.template=plain"
            )
        gap = "" if OPENS.search(gap) else gap
        self.lead = gap[len(gap.rstrip(" ")) :]
        self.header = gap.removesuffix(self.lead)
        endings = [text[text.find(ANSWER) + len(ANSWER) :] if ANSWER in text else "" for text in said]
        self.endings = (endings[0], endings[1].partition(QUESTION)[0])
        self.opening = prompt[: max(0, prompt.find(QUESTION))]
        self.written = "".join((prompt, *said))

    def _rewrites(self, what: str, part: str) -> UnsuitableError:
        return UnsuitableError(
            f"{self._where} writes a {what} without the text of the {part}, or changes it (some expect a list of "
            "parts in place of a text). Use model.template=plain"
        )

    def _tried(self, messages: Sequence[dict[str, str]]) -> str:
        """The text of a conversation; none where the template refuses it: then nobody asks with such a one."""
        try:
            return self.render(messages, answers=False)
        except UnsuitableError:
            return ""


def _source(tokenizer: PreTrainedTokenizerBase, where: str) -> str:
    try:
        return str(tokenizer.get_chat_template())
    except Exception as error:
        raise UnsuitableError(f"{where} cannot be used: {one_line(error)}. Use model.template=plain") from None


def _open(text: str) -> bool:
    """Whether a text ends within a block of thoughts."""
    opened, closed = ([found.start() for found in kind.finditer(text)] for kind in (OPENS, CLOSES))
    return bool(opened) and max(opened) > max(closed, default=-1)
