"""Results of other suites ("peers"), read from their published logs and scored again with our metrics.

A peer's log has the model's outputs for each example, so it can be scored here without the model. A published number
either equals our metric, or a named variant of it, or the table shows that it does not.
"""

__all__ = ["line", "logs", "open_unlearning", "rows", "tofu"]
