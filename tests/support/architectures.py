"""Small models of six architectures."""

from __future__ import annotations

import torch
import transformers

VOCABULARY = 40
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
ARCHITECTURES = {
    "grouped heads": transformers.LlamaConfig(**SMALL, **HEADS),
    "learned positions": transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=None
    ),
    "a window of 4": transformers.MistralConfig(**SMALL, **HEADS, sliding_window=4),
    "positions from the mask": transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
    "a state instead of attention": transformers.MambaConfig(**SMALL, state_size=4),
    "a window in some layers": transformers.Gemma2Config(**SMALL, **HEADS, head_dim=8, sliding_window=4),
}
TAKES_ROWS = {"grouped heads", "learned positions"}


def made(config, seed: int = 0) -> transformers.PreTrainedModel:
    """A model whose next token depends on what it reads: weights five times the usual."""
    config.pad_token_id, config.bos_token_id, config.eos_token_id = None, None, None
    config.initializer_range = 0.1
    torch.manual_seed(seed)
    return transformers.AutoModelForCausalLM.from_config(config).eval()
