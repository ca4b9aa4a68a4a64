"""The board as data: its tables, the files that hold them, samples read back and scored again."""

__all__ = ["files", "rescoring", "samples", "schema", "store"]
