"""Whether a model has an embedding for every token of its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from suite.config.errors import ModelError
from suite.models.config_file import read_config
from suite.models.folder import brief

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REMEDY = "Take the tokenizer of this model, or save the model after resize_token_embeddings"


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, folder: Path, architecture: Path) -> int | None:
    """Check that the model has an embedding for every token that text can have, and return how many it has.

    A model may have more of them than tokens. It may also lack those of special tokens that no text has (Gemma 3's for
    images, a padding token), unless they begin or end every text. What a chat template or a text has is known when it
    is encoded; see `no_embedding`.

    Raises:
        ModelError: it lacks one.
    """
    rows = getattr(read_config(architecture).get_text_config(), "vocab_size", None)
    if not isinstance(rows, int):
        return None
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    around = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}
    used = {token: number for token, number in beyond.items() if number not in special or number in around}
    if used:
        token = min(used, key=lambda token: used[token])
        raise ModelError(
            f"{folder}: the tokenizer has the token {brief(token)} with the id {used[token]}, and the model has "
            f"embeddings for {rows} (vocab_size in {architecture}/config.json). {REMEDY}"
        )
    return rows


def no_embedding(token: int, rows: int, tokenizer: PreTrainedTokenizerBase, where: str) -> ModelError:
    """The error of a token of which the model has no embedding.

    Args:
        rows: embeddings that it has.
        where: what has the token.
    """
    return ModelError(
        f"{where} has the token {brief(str(tokenizer.convert_ids_to_tokens(token)))} with the id {token} in the "
        f"tokenizer of {tokenizer.name_or_path or 'the model'}, and the model has embeddings for {rows}. {REMEDY}"
    )
