"""The loss oracle: the unlearning objective on one batch as something that answers questions, at any place.

What may be asked is in `base`; random directions are in `directions`, and the state of a run in `state`.
"""

__all__ = ["base", "batch", "directions", "displaced", "loss", "noise", "replicas", "state"]
