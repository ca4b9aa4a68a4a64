"""Control tokens, told from the same characters in a text.

A tokenizer finds `<s>` or `<|eot_id|>` wherever the characters stand, also in a question that quotes them. Only what
the tokenizer or its chat template writes is such a token; in a text they are characters like others. What a template
wrote is marked, and a text that has the characters of a control token itself (few do) is encoded by a copy of the
tokenizer in which the control tokens have names that no text has: nothing else is different there.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from suite.config.errors import UnsuitableError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

MARK, HIDE, END = "\ud800", "\ud801", "\udfff"
"""Around the number of a marked control token, of a hidden piece of text. Half a surrogate pair stands in no text."""

BYTE = re.compile("<0x[0-9A-F]{2}>")
"""Tokens that SentencePiece writes bytes with: no control tokens, even where a tokenizer lists them as special."""


class ControlTokens:
    """A tokenizer's control tokens: its special ones, and added ones that its chat template writes.

    Args:
        written: text that the template writes, with its control tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, written: str = "") -> None:
        self.tokenizer = tokenizer
        added = {i: (str(token), token.special) for i, token in tokenizer.added_tokens_decoder.items()}
        added |= dict(
            zip(tokenizer.all_special_ids, ((text, True) for text in tokenizer.all_special_tokens), strict=True)
        )
        self._ids = {
            text: i
            for i, (text, special) in added.items()
            if text.strip() and (special or text in written) and not BYTE.fullmatch(text)
        }
        self._texts = sorted(self._ids, key=len, reverse=True)  # where two begin, the tokenizer takes the longer one
        some = "|".join(map(re.escape, self._texts)) or r"(?!)"
        self._exact, self._alike = re.compile(some), re.compile(some, re.IGNORECASE)  # some tokenizers fold case

    @property
    def ids(self) -> frozenset[int]:
        return frozenset(self._ids.values())

    def hidden(self, text: str, pieces: list[str]) -> str:
        """The text with a number in place of each control token's characters, which are added to `pieces`."""

        def number(found: re.Match[str]) -> str:
            pieces.append(found[0])
            return f"{HIDE}{len(pieces) - 1}{END}"

        return self._alike.sub(number, text)

    def marked(self, text: str, pieces: Sequence[str]) -> str:
        """What a template has made of hidden texts: its own control tokens marked, the texts' pieces in place."""
        text = self._exact.sub(lambda found: f"{MARK}{self._texts.index(found[0])}{END}", text)
        return re.sub(f"{HIDE}([0-9]+){END}", lambda found: pieces[int(found[1])], text)

    def unmarked(self, text: str) -> str:
        """The text with the characters of its control tokens, to be read."""
        return self._named(text, self._texts)

    def encoded(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts in which the control tokens that count are marked, without any that the tokenizer adds."""
        quoting = [bool(self._alike.search(text)) for text in texts]
        plain = [self._named(text, self._texts) for text, quotes in zip(texts, quoting, strict=True) if not quotes]
        found = iter(self.tokenizer(plain, add_special_tokens=False, verbose=False)["input_ids"] if plain else ())
        return [self._quoting(text) if quotes else next(found) for text, quotes in zip(texts, quoting, strict=True)]

    def _quoting(self, text: str) -> list[int]:
        tokenizer, names = self._renamed
        return tokenizer.encode(self._named(text, names), add_special_tokens=False).ids

    @staticmethod
    def _named(text: str, names: Sequence[str]) -> str:
        return re.sub(f"{MARK}([0-9]+){END}", lambda found: names[int(found[1])], text) if MARK in text else text

    @cached_property
    def _renamed(self) -> tuple[Tokenizer, list[str]]:
        """The tokenizer with other names for the control tokens, and these names.

        Raises:
            UnsuitableError: the tokenizer cannot be copied so.
        """
        from tokenizers import Tokenizer

        names = {text: f"\ufdd0{uuid.uuid4().hex}\ufdd1" for text in self._texts}
        try:
            whole = json.loads(self.tokenizer.backend_tokenizer.to_str())
            renamed = Tokenizer.from_str(json.dumps(_renamed(whole, names)))
            kept = all(renamed.token_to_id(names[text]) == i for text, i in self._ids.items())
        except Exception:
            kept = False
        if not kept:
            raise UnsuitableError(
                f"model: a text quotes one of the control tokens {', '.join(self._texts[:5])}, and the tokenizer of "
                f"{self.tokenizer.name_or_path or 'the model'} cannot tell it from the token. Take it out of the text"
            )
        return renamed, list(names.values())


def _renamed(whole: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """A tokenizer.json with other names for some tokens."""
    model = whole["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(text, text): i for text, i in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(text, text), score] for text, score in vocabulary]
    if "merges" in model:  # none leads to a control token: characters that do would be the token again
        pairs = (pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"])
        model["merges"] = [pair for pair in pairs if not {*pair, "".join(pair)} & names.keys()]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    for token in whole["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    return {**whole, "post_processor": None, "truncation": None, "padding": None}
