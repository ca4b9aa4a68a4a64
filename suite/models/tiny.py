"""The tiny model: a Llama with random weights, and a tokenizer trained on a task's text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from suite.models.settings import ModelSpec, TinyModel
from tasks.task import Task

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

VERSION = 1
"""Increased when the same settings give other weights or another tokenizer."""


def tiny_model(spec: ModelSpec, task: Task, seed: int) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """The model and its tokenizer.

    Args:
        seed: of its weights.
    """
    from transformers import LlamaForCausalLM

    tokenizer = train_tokenizer(task, spec.tiny)
    config = tiny_config(spec.tiny, len(tokenizer), end=tokenizer.eos_token_id, pad=tokenizer.pad_token_id)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).to(getattr(torch, spec.dtype)), tokenizer


def tiny_config(tiny: TinyModel, vocabulary: int, *, end: int | None = None, pad: int | None = None) -> LlamaConfig:
    """The config of a tiny model.

    Args:
        vocabulary: tokens that it has embeddings for.
        end, pad: ids of special tokens.
    """
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=tiny.hidden,
        intermediate_size=3 * tiny.hidden,
        num_hidden_layers=tiny.layers,
        num_attention_heads=tiny.heads,
        max_position_embeddings=tiny.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=pad,
        # Outputs of unit size at any width. Llama's 0.02 fits a width of 2,500; a narrow model learns three times
        # slower with it.
        initializer_range=tiny.hidden**-0.5,
    )


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
