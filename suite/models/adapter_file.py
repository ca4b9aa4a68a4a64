"""A LoRA adapter's settings, from its adapter_config.json to peft.

peft acts on many more: it imports a module that the file names, reads files, replicates layers. So its settings object
is built here from those that describe an adapter that was trained already; a file in which others are set is refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from suite.config.errors import CheckpointError
from suite.models.folder import brief, library, read_settings
from suite.models.rehearsal import rehearse_patterns

PASSED = (
    *("r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora"),
    *("modules_to_save", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern"),
    *("trainable_token_indices", "use_dora", "lora_bias", "target_parameters", "ensure_weight_tying"),
)
"""Settings that peft is given as they are."""

OF_NO_EFFECT = (
    *("peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision"),
    *("inference_mode", "init_lora_weights", "runtime_config", "megatron_core", "qalora_group_size"),
    *("loftq_config", "eva_config", "lora_ga_config"),
)
"""Settings that say where an adapter came from or how it was started, or that belong to one that is refused."""

STARTED = ("gaussian", "orthogonal", "eva", "mica", "lora_ga")
"""Values of init_lora_weights that shape an adapter before its training, and mean nothing once it is trained."""

FROM_SVD = re.compile(r"pissa(_niter_\d{1,2})?|olora")
"""Values of init_lora_weights with which peft first takes the adapter's start away from the base weights."""

TEXTS = ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern", "target_parameters")
FLAGS = ("fan_in_fan_out", "use_rslora", "use_dora", "lora_bias", "ensure_weight_tying")


def adapter_settings(file: Path) -> dict[str, Any]:
    """The settings in an adapter_config.json.

    Raises:
        ModelError: it is no JSON that settings could be.
        CheckpointError: the adapter is not LoRA, or a setting is not supported or of the wrong kind, naming the key.
    """
    settings = read_settings(file)
    if settings.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{file}: peft_type is {brief(settings.get('peft_type'))}, and LORA adapters are read. Merge the adapter "
            "into its model and name the result"
        )
    for key, value in settings.items():
        if key not in PASSED and key not in OF_NO_EFFECT and value not in (None, False, {}, []):
            raise CheckpointError(f"{file}: {key} is set, which is not supported. Merge the adapter into its model")
        if not _has_its_kind(key, value):
            raise CheckpointError(f"{file}: {key} is {brief(value)}, and no {key} of an adapter can be that")
    if "r" not in settings:
        raise CheckpointError(f"{file}: names no r, the rank of the adapter")
    start = settings.get("init_lora_weights", True)
    if not (start is None or isinstance(start, bool) or start in STARTED or _svd(start)):
        raise CheckpointError(f"{file}: init_lora_weights is {brief(start)}, which is not supported. Convert it")
    return settings


def _svd(start: Any) -> bool:
    return isinstance(start, str) and FROM_SVD.fullmatch(start) is not None


def _has_its_kind(key: str, value: Any) -> bool:
    """Whether a setting has the kind of value that peft writes."""
    if value is None:
        return key != "r"
    if key == "r":
        return _is_count(value)
    if key == "lora_alpha":
        return _is_number(value)
    if key == "lora_dropout":
        return _is_number(value) and 0 <= value <= 1
    if key in FLAGS:
        return isinstance(value, bool)
    if key == "bias":
        return value in ("none", "all", "lora_only")
    if key in TEXTS:
        return isinstance(value, str) or _is_list(value, str)
    if key == "rank_pattern":
        return isinstance(value, dict) and all(map(_is_count, value.values()))
    if key == "alpha_pattern":
        return isinstance(value, dict) and all(map(_is_number, value.values()))
    if key == "layers_to_transform":
        return _is_index(value) or (isinstance(value, list) and all(map(_is_index, value)))
    if key == "trainable_token_indices":
        lists = list(value.values()) if isinstance(value, dict) else [value]
        return all(isinstance(one, list) and all(map(_is_index, one)) for one in lists)
    return True


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _is_count(value: Any) -> bool:
    return _is_index(value) and value > 0


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(one, kind) for one in value)


def largest_rank(settings: dict[str, Any]) -> int:
    """The largest rank of an adapter's matrices."""
    return max(settings["r"], *(settings.get("rank_pattern") or {}).values(), 1)


def largest_token(settings: dict[str, Any]) -> int:
    """The largest id of the tokens whose embeddings an adapter trained one by one; -1 without any."""
    tokens = settings.get("trainable_token_indices") or []
    lists = tokens.values() if isinstance(tokens, dict) else [tokens]
    return max((token for one in lists for token in one), default=-1)


def check_adapter(file: Path, shapes: dict[str, tuple[int, ...]], modules: list[str]) -> None:
    """Check an adapter's settings against its weights, and its patterns against the names in the model.

    Args:
        shapes: of its tensors.
        modules: names of the model's modules, which peft matches the patterns with.

    Raises:
        ModelError, CheckpointError: naming the file and the key.
    """
    settings = adapter_settings(file)
    dimensions = max((size for shape in shapes.values() for size in shape), default=0)
    if largest_rank(settings) > dimensions:
        raise CheckpointError(
            f"{file}: the rank is {largest_rank(settings)}, and no tensor of the adapter has so many rows. Take the "
            "config of these weights"
        )
    patterns = {
        (key, text)
        for key in (*TEXTS, "rank_pattern", "alpha_pattern", "trainable_token_indices")
        for text in ([settings[key]] if isinstance(settings.get(key), str) else settings.get(key) or ())
        if isinstance(text, str) and not re.fullmatch(r"[\w.]*|all-linear", text)
    }
    rehearse_patterns(file, sorted(patterns), modules)


def lora_config(file: Path) -> Any:
    """The settings object of peft for an adapter.

    Raises:
        ModelError, CheckpointError: the file says what is not supported.
    """
    from peft import LoraConfig  # seconds to import

    settings = adapter_settings(file)
    start: Any = settings.get("init_lora_weights")
    given = {key: settings[key] for key in PASSED if settings.get(key) is not None}
    with library(file, "adapter", CheckpointError):
        return LoraConfig(
            **given,
            task_type=settings.get("task_type"),
            init_lora_weights=start if _svd(start) else True,
        )
