"""A folder's config.json and tokenizer_config.json: what they may say, checked before transformers acts on it.

transformers takes any key: it builds lists of a billion layers, looks dtypes up in torch by name, and fetches attention
kernels from the hub. Here sizes have bounds, and what names a thing to be loaded has to be on a list.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from suite.config.errors import ModelError
from suite.models.folder import brief, entries, library, read_settings

CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"

SIZES = frozenset(
    """
    hidden_size n_embd d_model intermediate_size n_inner d_ff ffn_dim num_hidden_layers n_layer n_layers num_layers
    num_attention_heads n_head n_heads num_key_value_heads vocab_size max_position_embeddings n_positions n_ctx
    head_dim
    """.split()
)
"""Keys whose value is a positive whole number (or a list of such, one per layer)."""

LAYERS = re.compile(r"(^|_)layers?$")
MOST_LAYERS = 2000
"""Published models have 130 at most."""

LARGEST, LARGEST_COUNT = 2**24, 2**16
"""Of a size or length, and of any other whole number. The longest context in use is 10 million tokens. Where a library
counts to the second, or makes a mapping of that many entries, it takes seconds."""

LENGTH = re.compile(r"size|length|len$|position|embeddings|context|ctx|window|vocab|dim")

UNBOUNDED = re.compile(r"theta|base|factor|seed|param|flop|flos|total|index|ids?$", re.IGNORECASE)
"""Keys of whole numbers that nothing is sized by."""

ATTENTION = ("eager", "sdpa", "flex_attention")
"""Implementations that are part of transformers and torch; other names are packages, or kernels on the hub."""
EXPERTS = ("eager", "grouped_mm", "batched_mm")
IMPLEMENTATIONS = {
    f"{prefix}{kind}_implementation": names
    for prefix in ("", "_")
    for kind, names in (("attn", ATTENTION), ("experts", EXPERTS))
}

DTYPES = ("float32", "float", "bfloat16", "float16", "half", "float64", "auto")

ELSEWHERE = {
    "configuration_files": "it leads to another file",
    "speculators_config": "it leads to another model",
    "quantization_config": "quantized weights are not read. Save the model de-quantized",
    "compression_config": "compressed weights are not read. Save the model as ordinary weights",
}
"""Keys of a config that have to be absent or empty, and why."""

TOKENIZER = re.compile(r"[A-Za-z][A-Za-z0-9_]*Tokenizer(Fast)?")
BACKENDS = (
    "TokenizersBackend",
    "PythonBackend",
    "SentencePieceBackend",
    "PreTrainedTokenizer",
    "PreTrainedTokenizerFast",
)

VARIES = "varies"
"""In place of a setting that layers of one model have different values of."""

LARGEST_TOKEN = 2**22
"""Of a token's id: four million. The largest vocabulary in use has one."""

OVERRIDDEN = ("tokenizer_file", "special_tokens_map_file", "added_tokens_file", "tokenizer_config_file")
"""Paths of the machine that a tokenizer was saved on, often left in its settings. transformers replaces them."""


def read_config(folder: Path) -> Any:
    """The config of a causal language model, as transformers makes it from the folder's config.json.

    Raises:
        ModelError: it is missing, or is none that can be used, naming the file and the key.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    file = folder / CONFIG
    settings = read_settings(file)
    check_config(file, settings)
    model_type = settings.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise ModelError(
            f"{file}: model_type is {brief(model_type)}, none that transformers knows, and nothing that a model "
            "carries is executed. Take a model that transformers knows by itself"
        )
    with library(file, "config"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        text = config.get_text_config()
        if not {type(config), type(text)} & set(MODEL_FOR_CAUSAL_LM_MAPPING):
            raise ModelError(f"{file}: model_type is {brief(model_type)}, which is no causal language model")
        for one in (config, text):
            one.return_dict = True  # the answers of a model are read by their names
            if hasattr(one, "auto_map"):  # the library's own class is used, and code of the folder's never
                del one.auto_map
        _check_heads(file, text)
    return config


def check_config(file: Path, settings: dict[str, Any]) -> None:
    """Check the sizes in a config.json, and all that names a thing to be loaded.

    Raises:
        ModelError: naming the file and the key.
    """
    from transformers import PreTrainedConfig

    for path, key, value in entries(settings):
        at = f"{file}: {path}"
        whole = isinstance(value, int) and not isinstance(value, bool)
        single = value is not None and not isinstance(value, list | dict)
        if key in SIZES and single and not (whole and value > 0):
            raise ModelError(f"{at} is {brief(value)}, and has to be a positive whole number")
        if whole:
            largest = MOST_LAYERS if LAYERS.search(key) else LARGEST if LENGTH.search(key) else LARGEST_COUNT
            if abs(value) > largest and (key in SIZES or not UNBOUNDED.search(key)):
                raise ModelError(
                    f"{at} is {brief(value)}, and models have {largest} at most. Take the model's own config"
                )
        if key in IMPLEMENTATIONS and value is not None and value not in IMPLEMENTATIONS[key]:
            raise ModelError(
                f"{at} is {brief(value)}, which would be fetched and executed. Remove the key, or use one of "
                f"{', '.join(IMPLEMENTATIONS[key])}"
            )
        if key in ("dtype", "torch_dtype") and not isinstance(value, dict | None) and value not in DTYPES:
            raise ModelError(f"{at} is {brief(value)}, and has to be one of {', '.join(DTYPES)}")
        if key == "auto_map" and path != key:
            raise ModelError(f"{at}: code of a part of a model is never executed. Remove the key")
        if value and key in ELSEWHERE:
            raise ModelError(f"{at} is set: {ELSEWHERE[key]}")
        of_config = path == key or path.split(".")[-2].endswith("config")
        if of_config and key != "__float__" and (key[:2] == "__" or callable(getattr(PreTrainedConfig, key, None))):
            raise ModelError(f"{at} is no setting, but a method of transformers. Remove the key")


def setting(config: Any, name: str) -> Any:
    """A setting of a config: None where it has none, `VARIES` where its layers have different ones (as in Gemma 4)."""
    try:
        return getattr(config, name, None)
    except RuntimeError:  # AmbiguousGlobalPerLayerAttributeError
        return VARIES


def _check_heads(file: Path, config: Any) -> None:
    """Check that attention heads divide the width and each other, where a config gives plain numbers."""
    width, heads, shared = (
        setting(config, name) for name in ("hidden_size", "num_attention_heads", "num_key_value_heads")
    )
    if not isinstance(heads, int):
        return
    if heads < 1:
        raise ModelError(f"{file}: num_attention_heads is {heads}, and has to be a positive whole number")
    if isinstance(width, int) and not setting(config, "head_dim") and width % heads:
        raise ModelError(f"{file}: num_attention_heads is {heads}, which does not divide hidden_size={width}")
    if isinstance(shared, int) and (shared < 1 or heads % shared):
        raise ModelError(f"{file}: num_key_value_heads is {shared}, which does not divide num_attention_heads={heads}")


def check_tokenizer_config(folder: Path) -> None:
    """Check what a folder's tokenizer_config.json tells transformers to load, if there is one.

    Raises:
        ModelError: naming the file and the key.
    """
    file = folder / TOKENIZER_CONFIG
    settings = read_settings(file) if file.exists() else {}
    config = read_settings(folder / CONFIG) if (folder / CONFIG).exists() else {}
    for place, name in ((file, settings.get("tokenizer_class")), (folder / CONFIG, config.get("tokenizer_class"))):
        if name is not None and not _is_tokenizer(name):
            raise ModelError(
                f"{place}: tokenizer_class is {brief(name)}, which is no tokenizer. Name the tokenizer's class"
            )
    for key, value in settings.items():
        at = f"{file}: {key}"
        plain = value is None or (isinstance(value, str) and value == Path(value).name)
        if key.endswith("_file") and key not in OVERRIDDEN and not plain:
            raise ModelError(f"{at} is {brief(value)}, no file of this folder. Remove the key")
        if key in ("vocab", "merges", "init_inputs", "gguf_file", "trust_remote_code", "tokenizer_object") and value:
            raise ModelError(f"{at}: a tokenizer is read from its own files. Remove the key")
        if key == "fast_tokenizer_files":
            names = value if isinstance(value, list) else [value]
            if not all(isinstance(name, str) and re.fullmatch(r"tokenizer[\w.-]*\.json", name) for name in names):
                raise ModelError(f"{at} names a file that is none of this folder's. Remove the key")
    ids = settings.get("added_tokens_decoder", {})
    for name in ids if isinstance(ids, dict) else ():
        if not name.isdecimal() or len(name) > 9 or int(name) > LARGEST_TOKEN:
            raise ModelError(f"{file}: added_tokens_decoder: {brief(name)} is no token's id (0 to {LARGEST_TOKEN})")


def _is_tokenizer(name: Any) -> bool:
    """Whether a class may be looked up in transformers by this name: it finds models and pipelines too."""
    from transformers import PreTrainedTokenizerBase
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    if name in BACKENDS:
        return True
    if not isinstance(name, str) or not TOKENIZER.fullmatch(name):
        return False
    found = tokenizer_class_from_name(name)  # None for a class that the folder's code would bring: another serves
    return found is None or (isinstance(found, type) and issubclass(found, PreTrainedTokenizerBase))
