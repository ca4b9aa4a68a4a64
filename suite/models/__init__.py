"""A causal language model: its checkpoints as values, text as token ids, likelihoods, ordinary training.

Nothing here knows what unlearning is.
"""

__all__ = [
    "checkpoints",
    "encoding",
    "finetuning",
    "gradient_checkpointing",
    "layers",
    "lengths",
    "likelihood",
    "loading",
    "schedule",
    "settings",
]
