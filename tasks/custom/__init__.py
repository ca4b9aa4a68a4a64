"""Tasks of the user's own: a folder with `task.yaml` and files of rows."""

__all__ = ["rows", "settings", "task"]
