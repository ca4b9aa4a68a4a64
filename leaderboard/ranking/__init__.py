"""Computes a ranking from rows: headlines of a trial, entries over seeds, ranks, and what follows from them."""

__all__ = [
    "ceilings",
    "compare",
    "comparison",
    "entry",
    "headlines",
    "levels",
    "measured",
    "mixing_curve",
    "null_entries",
    "number",
    "rank",
    "recovery_table",
    "replicated",
    "retention_matching",
    "searches",
    "specs",
    "synthetic",
    "uncollected",
    "verdict",
]
