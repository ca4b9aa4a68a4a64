"""Other suites' results, read from the logs that they publish and scored again by our own metrics.

A peer's log says what its model did with each example, so its samples can be scored here without the model: a published
number either comes out of our definitions, or out of a variant that is named, or the table shows that it does not.
"""

__all__ = ["line", "logs", "open_unlearning", "rows"]
