"""Tasks of the user's own: a folder with a head and rows."""

__all__ = ["head", "rows", "task"]
