"""Causal language models: checkpoints, tokenization, likelihoods, and ordinary fine-tuning.

Nothing here depends on unlearning.
"""

__all__ = [
    "causal_lm",
    "checkpoints",
    "config_file",
    "conversion",
    "decoding_settings",
    "encoding",
    "finetuning",
    "gradient_checkpointing",
    "layers",
    "layout",
    "lengths",
    "likelihood",
    "loading",
    "named_folder",
    "outline",
    "parameter_names",
    "schedule",
    "settings",
    "weight_files",
]
