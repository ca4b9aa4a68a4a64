"""From checkpoints and attacks to rows: what is asked, how it is scored, how rows are published.

Retention matching and the loss landscape are here too: they measure, and change no trial.
"""

__all__ = ["evaluator", "landscape", "publishing", "retention_matching", "scoring", "trial_rows"]
