"""The loss oracle: loss values, gradients and curvature of the unlearning objective on one batch, at any weights.

`base` defines the queries, `directions` the random directions, and `state` how the state of a run is saved.
"""

__all__ = ["base", "batch", "directions", "displaced", "loss", "noise", "replicas", "state"]
