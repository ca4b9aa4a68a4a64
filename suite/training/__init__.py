"""Every model that is trained before anything is attacked: the anchors, and the unlearned one."""

__all__ = ["anchors", "batches", "refusals", "unlearning", "weight_change"]
