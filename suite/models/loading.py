"""The model before training on the task: a tiny one made here, or a causal language model by path or hub id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
import transformers

from suite.models.adapter_file import check_adapter
from suite.models.chat_template import Plain
from suite.models.checkpoints import Heads, LoraCheckpoint, SavedCheckpoint, context_of, heads_of
from suite.models.config_file import CONFIG, check_tokenizer_config, read_config
from suite.models.decoding_settings import ends_of
from suite.models.encoding import Encoder, Template
from suite.models.folder import check_files, is_folder, library, read_settings
from suite.models.identity import fingerprint, tokenizer_files
from suite.models.named_folder import adapter_folder, adapters_base, architecture_folder, model_folder, naming
from suite.models.rehearsal import PAGE, rehearse_tokenizer
from suite.models.settings import ModelSpec
from suite.models.size import check_memory, check_size
from suite.models.tiny import VERSION, tiny_model, train_tokenizer
from suite.models.vocabulary import check_vocabulary
from suite.models.weight_files import check_finite, shapes_of, weight_files
from suite.storage.stages import StageStore
from tasks import TASKS
from tasks.task import Task, examples_digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHAT_TEMPLATE = "chat_template.jinja"

ENCODING = 2
"""Increased when the same text gives other ids, or an answer ends elsewhere. 2: prompt and answer are tokenized
together, control tokens are told from text, the chat template is given its arguments and ends a turn."""

ANGLES_ROUNDED_BEFORE = ("gptj", "codegen")
"""Kinds of models that once had the angles of their positions in the model's own dtype, in place of fp32."""

UNMOVED = ("pocket", "tofu/", "rwku/")
"""Tasks whose ids on `tiny` are those of version 1 (their names begin so): the stages are kept."""


@dataclass(frozen=True)
class BaseModel:
    """A model to start from.

    Attributes:
        identity: determines the model, for stage keys: the settings it is made from, a hub commit, or a digest of its
            files.
    """

    checkpoint: SavedCheckpoint | LoraCheckpoint
    encoder: Encoder
    identity: Mapping[str, Any]

    @cached_property
    def context(self) -> int | None:
        """The model's context length in tokens; None where it sets no limit."""
        return context_of(self.checkpoint.architecture)

    def block(self, task: Task) -> int | None:
        """Tokens per block of running text: the task's number, or the context length where that is smaller."""
        return min(task.block, self.context or task.block) if task.block else None


def base_model(spec: ModelSpec, task: Task, seed: int, store: StageStore) -> BaseModel:
    """The model that both anchors are trained from.

    Args:
        seed: of the tiny model's weights.

    Raises:
        MissingError, ModelError, ...: no such model, or one that cannot be used, saying why.
    """
    if spec.name == "tiny":
        # Not the task's own digest: the tokenizer is made from the training texts, which `retain_limit` may reduce.
        texts = examples_digest((*task.forget_examples(), *task.retain, *task.holdout))
        inputs = {"version": VERSION, "tiny": spec.tiny.changed(), "seed": seed, "texts": texts, "dtype": spec.dtype}
        artifact = store.run("base", inputs, lambda folder: _save_tiny(folder, spec, task, seed))
        folder = artifact.folder
        moved = {} if task.name.startswith(UNMOVED) else {"encoding": ENCODING}
        return _read_model(spec, folder, {"base": artifact.key, **moved})
    return resolve_model(spec, spec.name)


def resolve_model(spec: ModelSpec, name: str, key: str = "model.name", *, finite: bool = True) -> BaseModel:
    """The model in a folder or on the hub, in the spec's dtype and with its template.

    Args:
        key: the setting that names it, for messages.
        finite: whether weights that are NaN or infinite are refused. Those of a model that is only measured are not:
            its numbers are null.

    Raises:
        MissingError, ModelError, ...: no such model, or one that cannot be used, saying why.
    """
    if (adapter := adapter_folder(name)) is not None:
        return model_with_adapter(spec, adapter, key, finite=finite)
    folder = model_folder(name, key)
    with naming(key):
        _check_weights(folder)
        if finite:
            check_finite(weight_files(folder), getattr(torch, spec.dtype))
        identity = {**_identity(name, folder), "dtype": spec.dtype, "encoding": ENCODING}
        if spec.dtype != "float32" and read_settings(folder / CONFIG).get("model_type") in ANGLES_ROUNDED_BEFORE:
            identity["angles"] = 2
        return _read_model(spec, folder, identity, published_args(name))


def _read_model(
    spec: ModelSpec, folder: Path, identity: Mapping[str, Any], published: Mapping[str, Plain] = MappingProxyType({})
) -> BaseModel:
    encoder = _encoder(spec, folder, published)
    checkpoint = SavedCheckpoint(folder, getattr(torch, spec.dtype))
    return BaseModel(checkpoint, encoder, {**identity, **_asked(encoder)})


def _asked(encoder: Encoder) -> dict[str, Any]:
    """How questions are put, for a model's identity."""
    return {"template": str(encoder.template), **({"template_args": dict(encoder.args)} if encoder.args else {})}


def _encoder(
    spec: ModelSpec,
    folder: Path,
    published: Mapping[str, Plain],
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Encoder:
    """The encoder of the model in a folder.

    Args:
        published: what its publisher gave the chat template; the spec's own arguments have precedence.
        tokenizer: an adapter's own; by default the folder's.
    """
    if tokenizer is None:
        tokenizer = load_tokenizer(folder)
    rows = check_vocabulary(tokenizer, Path(tokenizer.name_or_path), folder)
    template = spec.template or _default_template(spec, tokenizer)
    args = spec.template_args.over(published) if template is Template.CHAT else spec.template_args
    config = read_settings(folder / CONFIG)
    # As in lm-evaluation-harness: Gemma knows little of a text that does not begin with its token.
    always_begins = "gemma" in str(config.get("model_type"))
    return Encoder(tokenizer, template, args.changed(), ends_of(folder), always_begins, rows)


def published_args(name: str) -> Mapping[str, Plain]:
    """What the publisher of a checkpoint gave its chat template, where a task knows it."""
    for entry in TASKS.values():
        known = (one.partition("@")[0] for pair in entry.published.values() for one in pair if one)
        if name.partition("@")[0] in known:
            return entry.published_args
    return {}


def model_with_adapter(spec: ModelSpec, path: Path, key: str, *, finite: bool = True) -> BaseModel:
    """A model with an adapter; the adapter's config names the base model. A tokenizer beside the adapter counts."""
    named, base_key = adapters_base(path, key)
    base = resolve_model(spec, named, base_key, finite=finite)
    checkpoint = LoraCheckpoint(SavedCheckpoint(base.checkpoint.architecture, getattr(torch, spec.dtype)), path)
    with naming(key):
        _check_adapter(checkpoint)
        if finite:
            check_finite([path / LoraCheckpoint.WEIGHTS], getattr(torch, spec.dtype))
        identity = {**base.identity, "adapter": fingerprint(path, [path / LoraCheckpoint.WEIGHTS])}
        if not _brings_words(path):
            return replace(base, checkpoint=checkpoint, identity=identity)
        tokenizer = _adapters_tokenizer(path, checkpoint.architecture)
        encoder = _encoder(spec, checkpoint.architecture, published_args(named), tokenizer)
        identity = {name: value for name, value in identity.items() if name != "template_args"} | _asked(encoder)
        return replace(base, checkpoint=checkpoint, encoder=encoder, identity=identity)


def _check_adapter(checkpoint: LoraCheckpoint) -> None:
    """Check an adapter's weights and settings against its base model. Only the files' headers are read."""
    weights = checkpoint.path / LoraCheckpoint.WEIGHTS
    if weights.is_file():
        check_memory([weights])
        form, _ = checkpoint.base.headers()
        modules = sorted({name.rpartition(".")[0] for name in form.layout.shapes})
        check_adapter(checkpoint.path / LoraCheckpoint.CONFIG, shapes_of([weights]), modules)
    checkpoint.check()


def _brings_words(adapter: Path) -> bool:
    """Whether a tokenizer or a chat template lies beside an adapter."""
    return bool(tokenizer_files(adapter))


def _adapters_tokenizer(adapter: Path, base: Path) -> PreTrainedTokenizerBase:
    """The tokenizer beside an adapter, or the base model's with the chat template that lies there."""
    if {file.name for file in tokenizer_files(adapter)} == {CHAT_TEMPLATE}:
        tokenizer = load_tokenizer(base)
        tokenizer.chat_template = (adapter / CHAT_TEMPLATE).read_text(encoding="utf-8")
        return tokenizer
    return load_tokenizer(adapter)


def read_encoder(spec: ModelSpec, task: Task, name: str, key: str = "model.name") -> tuple[Encoder, int | None]:
    """A model's encoder and context length, without making the model or reading or fetching its weights.

    Args:
        name: `tiny`, a folder or a hub id; `key` is the setting that names it, for messages.

    Raises:
        MissingError, ModelError, ...: no such model, or a tokenizer that cannot be used, saying why.
    """
    if name == "tiny":
        tokenizer = train_tokenizer(task, spec.tiny)
        encoder = Encoder(tokenizer, spec.template or Template.BARE, spec.template_args.changed())
        return encoder, spec.tiny.context
    if (adapter := adapter_folder(name)) is not None:
        named, base_key = adapters_base(adapter, key)
        encoder, context = read_encoder(spec, task, named, base_key)
        if not _brings_words(adapter):
            return encoder, context
        base = model_folder(named, base_key, weights=False)
        with naming(key):
            return _encoder(spec, base, published_args(named), _adapters_tokenizer(adapter, base)), context
    folder = model_folder(name, key, weights=False)
    with naming(key):
        return _encoder(spec, folder, published_args(name)), context_of(folder)


def read_heads(spec: ModelSpec, name: str, key: str = "model.name") -> Heads:
    """A model's attention heads, without making the model or reading or fetching its weights.

    Raises:
        MissingError: no such model.
    """
    if name == "tiny":
        return Heads(spec.tiny.hidden // spec.tiny.heads, spec.tiny.heads)
    folder = architecture_folder(name, key)
    with naming(key):
        return heads_of(folder)


def check_loads(name: str, key: str) -> None:
    """Check that a model's weights can be loaded, from the headers of its files alone. Nothing is fetched.

    Args:
        name: `tiny`, a folder or a hub id, which is checked when it has been fetched; `key` names it in messages.

    Raises:
        ModelError, CheckpointError: they cannot, saying why.
    """
    if name == "tiny" or not is_folder(name):
        return
    if (adapter := adapter_folder(name)) is None:
        folder = model_folder(name, key)
        with naming(key):
            return _check_weights(folder)
    base, base_key = adapters_base(adapter, key)
    check_loads(base, base_key)
    if is_folder(base):
        with naming(key):
            _check_adapter(LoraCheckpoint(SavedCheckpoint(model_folder(base, base_key)), adapter))


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder.

    Raises:
        ModelError: there is none that transformers can load, saying why.
    """
    from transformers import AutoTokenizer

    check_files(folder)
    check_tokenizer_config(folder)
    rehearse_tokenizer(folder)
    with library(folder, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        tokenizer.decode(tokenizer([PAGE], add_special_tokens=True, verbose=False)["input_ids"][0])
        return tokenizer


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save weights, config and tokenizer in the format that transformers and vLLM read."""
    transformers.utils.logging.disable_progress_bar()  # otherwise shown even for a megabyte
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _default_template(spec: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> Template:
    if spec.name == "tiny":
        return Template.BARE
    return Template.CHAT if tokenizer.chat_template else Template.PLAIN


def _save_tiny(folder: Path, spec: ModelSpec, task: Task, seed: int) -> dict[str, Any]:
    model, tokenizer = tiny_model(spec, task, seed)
    save(model, tokenizer, folder)
    return {"parameters": sum(p.numel() for p in model.parameters())}


def _identity(name: str, folder: Path) -> dict[str, Any]:
    if is_folder(name):
        return {"files": fingerprint(folder, weight_files(folder))}
    return {"hub": name.partition("@")[0], "commit": folder.name}


def _check_weights(folder: Path) -> None:
    """Check that the weights in a folder are those of its config's model. Only the files' headers are read."""
    checkpoint = SavedCheckpoint(folder)
    check_memory(checkpoint.files)
    check_size(folder, shapes_of(checkpoint.files), read_config(folder))
    checkpoint.check()
