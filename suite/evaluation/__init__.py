"""From checkpoints and attacks to rows of the board: evaluations, scoring, and publishing the rows.

Retention matching and the loss landscape are here too: both only measure, so they change no trial.
"""

__all__ = ["evaluator", "landscape", "publishing", "retention_matching", "scoring", "trial_rows"]
