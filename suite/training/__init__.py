"""Training before any attack: of the anchors, and of the unlearned model."""

__all__ = ["anchors", "batches", "random_change", "refusals", "step_log", "unlearning", "weight_change"]
