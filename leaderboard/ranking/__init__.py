"""Computes a ranking from rows: headlines of a trial, entries over seeds, ranks."""

__all__ = ["entry", "headlines", "measured", "number", "rank", "recovery_table", "retention_matching", "specs"]
