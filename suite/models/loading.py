"""The model before training on the task: a tiny one made here, or a causal language model by path or hub id."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from suite.config.errors import SpecError
from suite.models.checkpoints import Heads, LoraCheckpoint, SavedCheckpoint, context_of, heads_of
from suite.models.encoding import Encoder, Template
from suite.models.settings import ModelSpec, TinyModel
from suite.storage.stages import StageStore
from tasks.task import Task, examples_digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 1
"""Of the tiny model: increased when the same settings give other weights or another tokenizer."""


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
        SpecError: no such model, or one that cannot be used, saying why.
    """
    if spec.name == "tiny":
        # Not the task's own digest: the tokenizer is made from the training texts, which `retain_limit` may reduce.
        texts = examples_digest((*task.forget_examples(), *task.retain, *task.holdout))
        inputs = {"version": VERSION, "tiny": spec.tiny.changed(), "seed": seed, "texts": texts, "dtype": spec.dtype}
        artifact = store.run("base", inputs, lambda folder: _make_tiny(folder, spec, task, seed))
        folder = artifact.folder
        return _read_model(spec, folder, {"base": artifact.key})
    return resolve_model(spec, spec.name)


def resolve_model(spec: ModelSpec, name: str, key: str = "model.name") -> BaseModel:
    """The model in a folder or on the hub, in the spec's dtype and with its template.

    Args:
        key: the setting that names it, for messages.

    Raises:
        SpecError: no such model, or one that cannot be used, saying why.
    """
    if (adapter := _adapter_folder(name)) is not None:
        return _model_with_adapter(spec, adapter, key)
    folder, identity = _identify(name, key)
    return _read_model(spec, folder, {**identity, "dtype": spec.dtype})


def _read_model(spec: ModelSpec, folder: Path, identity: Mapping[str, Any]) -> BaseModel:
    tokenizer = load_tokenizer(folder)
    template = spec.template or _default_template(spec, tokenizer)
    checkpoint = SavedCheckpoint(folder, getattr(torch, spec.dtype))
    return BaseModel(checkpoint, Encoder(tokenizer, template), {**identity, "template": str(template)})


def _adapter_folder(name: str) -> Path | None:
    """The folder, if the name is that of a LoRA adapter."""
    path = Path(name).expanduser()
    return path.resolve() if (path / LoraCheckpoint.CONFIG).is_file() else None


def _model_with_adapter(spec: ModelSpec, path: Path, key: str) -> BaseModel:
    """A model with an adapter; the adapter's config names the base model."""
    named = json.loads((path / LoraCheckpoint.CONFIG).read_text()).get("base_model_name_or_path")
    if not named:
        raise SpecError(f"{key}: {path}/{LoraCheckpoint.CONFIG} names no base_model_name_or_path")
    base = resolve_model(spec, named, f"{key}: {path.name}: base_model_name_or_path")
    if not isinstance(base.checkpoint, SavedCheckpoint):
        raise SpecError(f"{key}: {path} is an adapter of an adapter. Merge the first one")
    return replace(
        base,
        checkpoint=LoraCheckpoint(base.checkpoint, path),
        identity={**base.identity, "adapter": _fingerprint(path)},
    )


def read_encoder(spec: ModelSpec, task: Task, name: str, key: str = "model.name") -> tuple[Encoder, int | None]:
    """A model's encoder and context length, without making the model or reading or fetching its weights.

    Args:
        name: `tiny`, a folder or a hub id; `key` is the setting that names it, for messages.

    Raises:
        SpecError: no such model, or a tokenizer that cannot be used, saying why.
    """
    if name == "tiny":
        tokenizer = train_tokenizer(task, spec.tiny)
        return Encoder(tokenizer, spec.template or Template.BARE), spec.tiny.context
    if (adapter := _adapter_folder(name)) is not None:
        return read_encoder(spec, task, str(_model_with_adapter(spec, adapter, key).checkpoint.architecture), key)
    folder = _model_folder(name, key, weights=False)
    tokenizer = load_tokenizer(folder)
    return Encoder(tokenizer, spec.template or _default_template(spec, tokenizer)), context_of(folder)


def read_heads(spec: ModelSpec, name: str, key: str = "model.name") -> Heads:
    """A model's attention heads, without making the model or reading or fetching its weights.

    Raises:
        SpecError: no such model.
    """
    if name == "tiny":
        return Heads(spec.tiny.hidden // spec.tiny.heads, spec.tiny.heads)
    adapter = _adapter_folder(name)
    return heads_of(
        _model_with_adapter(spec, adapter, key).checkpoint.architecture
        if adapter
        else _model_folder(name, key, weights=False)
    )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise SpecError(f"model: {folder} has no tokenizer that transformers can load: {error}") from None


def save(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save weights, config and tokenizer in the format that transformers and vLLM read."""
    transformers.utils.logging.disable_progress_bar()  # otherwise shown even for a megabyte
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _default_template(spec: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> Template:
    if spec.name == "tiny":
        return Template.BARE
    return Template.CHAT if tokenizer.chat_template else Template.PLAIN


def _make_tiny(folder: Path, spec: ModelSpec, task: Task, seed: int) -> dict[str, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = train_tokenizer(task, spec.tiny)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=spec.tiny.hidden,
        intermediate_size=3 * spec.tiny.hidden,
        num_hidden_layers=spec.tiny.layers,
        num_attention_heads=spec.tiny.heads,
        max_position_embeddings=spec.tiny.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        # Outputs of unit size at any width. Llama's 0.02 fits a width of 2,500; a narrow model learns three times
        # slower with it.
        initializer_range=spec.tiny.hidden**-0.5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).to(getattr(torch, spec.dtype))
    save(model, tokenizer, folder)
    return {"parameters": sum(p.numel() for p in model.parameters())}


def train_tokenizer(task: Task, tiny: TinyModel) -> PreTrainedTokenizerBase:
    """Byte-level BPE on all of the task's text, held-out text included, since a pretrained tokenizer saw all text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=tiny.vocabulary,
        special_tokens=["<pad>", "<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    examples = (*task.forget_examples(), *task.retain, *task.holdout)
    bpe.train_from_iterator((f"{e.prompt} {e.answer}" for e in examples), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", eos_token="<end>", model_max_length=tiny.context
    )


def _identify(name: str, key: str) -> tuple[Path, dict[str, Any]]:
    folder = _model_folder(name, key)
    if Path(name).expanduser().is_dir():
        return folder, {"files": _fingerprint(folder)}
    return folder, {"hub": name.partition("@")[0], "commit": folder.name}


def _model_folder(name: str, key: str, *, weights: bool = True) -> Path:
    """Folder of a model, fetched from the hub if the name is not a local folder."""
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise SpecError(f"{key}: {path} has no config.json, so it is no model folder")
        return path.resolve()
    if name.startswith(("/", ".", "~")) or name.count("/") != 1:
        raise SpecError(f"{key}: {name}: no such folder. Use a folder, tiny, or a hub id owner/model[@revision]")
    return _fetch(*name.partition("@")[::2], key, weights)


def _fetch(repository: str, revision: str, key: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    patterns = ["*.json", "*.jinja", "*.model", "*.txt"]  # no pickles, no code
    if weights:
        patterns.append("*.safetensors")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise SpecError(
            f"{key}: {repository}: not in the local cache and not to be had from the hub ({type(error).__name__})."
            " Name a local folder, log in for a gated model, or unset HF_HUB_OFFLINE"
        ) from None


def _fingerprint(folder: Path) -> str:
    """SHA-256 over a model folder's files."""
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json"), *folder.glob("*.jinja")]):
        digest.update(file.name.encode())
        with open(file, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
