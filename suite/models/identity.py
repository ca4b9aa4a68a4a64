"""The digest of a model's folder: of every file that can change an answer, and of no other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from suite.models.folder import OPENED, TEMPLATES

SETTINGS = ("config.json", "generation_config.json", "adapter_config.json")

TOKENIZER = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges*", "*.vocab", "*.model"),
    *("*.tiktoken", "*.spm", "*.bpe", "*.jinja", "chat_template*", "tekken.json", "encoder.json", "bpe.codes"),
    *("emoji.json", "byte_maps.json", "entity_vocab.json", "word_shape.json", "word_pronunciation.json", "dict.txt"),
    *("normalizer.json", "*.tokenizer"),
)
"""Files that a class of tokenizers of transformers reads, as patterns."""


def tokenizer_files(folder: Path) -> list[Path]:
    """A folder's files of its tokenizer and its chat templates, in the order of their names."""
    templates = folder / TEMPLATES
    here = [
        file
        for file in folder.iterdir()
        if file.name.endswith(OPENED) and any(fnmatch(file.name, pattern) for pattern in TOKENIZER)
    ]
    return sorted([*here, *(templates.glob("*.jinja") if templates.is_dir() else ())])


def fingerprint(folder: Path, weights: Iterable[Path]) -> str:
    """SHA-256 over the files of a model or an adapter that can change an answer.

    Args:
        weights: the files that count, of those in the folder.
    """
    settings = [folder / name for name in SETTINGS if (folder / name).is_file()]
    digest = hashlib.sha256()
    for file in sorted({*weights, *settings, *tokenizer_files(folder)}):
        digest.update(str(file.relative_to(folder)).encode())
        with open(file, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
