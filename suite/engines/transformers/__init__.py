"""The transformers engine: text is generated and scored in the trial's own process."""

__all__ = ["engine", "shortcut"]
