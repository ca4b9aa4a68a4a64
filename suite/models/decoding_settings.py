"""What a model's folder says about its answers: which tokens end them, which is read, and how else they are decoded.

The latter is not read, and docs/prompts.md says why.
"""

from __future__ import annotations

from pathlib import Path

from suite.config.errors import ModelError
from suite.models.config_file import CONFIG, LARGEST_TOKEN
from suite.models.folder import brief, read_settings

GENERATION = "generation_config.json"

NEUTRAL = {"repetition_penalty": 1, "encoder_repetition_penalty": 1, "guidance_scale": 1, "num_beams": 1}
"""Values that change nothing, besides those that are empty, zero or false."""

CHANGING = frozenset(
    """
    no_repeat_ngram_size suppress_tokens begin_suppress_tokens forced_bos_token_id forced_eos_token_id bad_words_ids
    sequence_bias min_length min_new_tokens guidance_scale penalty_alpha exponential_decay_length_penalty
    force_words_ids constraints watermarking_config stop_strings remove_invalid_values
    """.split()
) | set(NEUTRAL)
"""Settings with which the greedy answers of transformers are not the most probable tokens, or end elsewhere."""


def ends_of(folder: Path) -> list[int]:
    """The tokens that end a generation, as transformers reads them.

    Raises:
        ModelError: generation_config.json, or config.json without it, lists what is no token.
    """
    file = _settings_of(folder)
    found = read_settings(file).get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    for one in ids:
        if not isinstance(one, int) or isinstance(one, bool):
            raise ModelError(f"{file}: eos_token_id has {brief(one)}, which is no token's id")
    return [one for one in ids if 0 <= one <= LARGEST_TOKEN]


def unread_settings(folder: Path) -> str | None:
    """A sentence about the settings of a folder that would change a greedy answer in transformers; None without any.

    Raises:
        ModelError: a file is no JSON.
    """
    file = _settings_of(folder)
    told = [
        f"{key}={brief(value)}"
        for key, value in sorted(read_settings(file).items())
        if key in CHANGING and value and value != NEUTRAL.get(key)
    ]
    if not told:
        return None
    return f"{file}: {', '.join(told)}: not read. Answers are the model's most probable tokens (docs/prompts.md)"


def _settings_of(folder: Path) -> Path:
    return folder / GENERATION if (folder / GENERATION).exists() else folder / CONFIG
