"""The board as data: its tables, their Parquet files, and samples that are read back and scored again."""

__all__ = ["files", "items", "packages", "query", "rescoring", "samples", "schema", "store", "visible"]
