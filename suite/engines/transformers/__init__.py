"""The transformers engine: generates and scores text in the trial's own process."""

__all__ = ["engine", "shortcut"]
