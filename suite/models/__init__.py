"""Causal language models: checkpoints, tokenization, likelihoods, and ordinary fine-tuning.

Nothing here depends on unlearning.
"""

__all__ = [
    "checkpoints",
    "config_file",
    "encoding",
    "finetuning",
    "gradient_checkpointing",
    "layers",
    "lengths",
    "likelihood",
    "loading",
    "outline",
    "parameter_names",
    "schedule",
    "settings",
]
