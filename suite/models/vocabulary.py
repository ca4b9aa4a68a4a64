"""Whether a model has an embedding for every token of its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from suite.config.errors import SpecError
from suite.models.config_file import read_config
from suite.models.folder import brief

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, folder: Path, architecture: Path) -> None:
    """Check that the model has an embedding for every token that text can have.

    A model may have more of them than tokens. It may also lack those of special tokens that no text has (Gemma 3's for
    images, a padding token), unless they begin or end every text or stand in the chat template.

    Raises:
        SpecError: it lacks one.
    """
    rows = getattr(read_config(architecture).get_text_config(), "vocab_size", None)
    if not isinstance(rows, int):
        return
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    around = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}
    template = str(tokenizer.chat_template or "")
    used = {
        token: number
        for token, number in beyond.items()
        if number not in special or number in around or token in template
    }
    if used:
        token = min(used, key=lambda token: used[token])
        raise SpecError(
            f"{folder}: the tokenizer has the token {brief(token)} with the id {used[token]}, and the model has "
            f"embeddings for {rows} (vocab_size in {architecture}/config.json). Take the tokenizer of this model, or "
            "save the model after resize_token_embeddings"
        )
