"""Computes a ranking from rows: headlines of a trial, entries over seeds, ranks, and what follows from them."""

__all__ = [
    "ceilings",
    "compare",
    "comparison",
    "entry",
    "headlines",
    "levels",
    "measured",
    "null_entries",
    "number",
    "rank",
    "recovery_table",
    "retention_matching",
    "searches",
    "specs",
    "verdict",
]
