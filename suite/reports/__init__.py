"""Reports of a store: rankings, the importance of each setting, and plots."""

__all__ = ["plots", "report", "step_plot"]
