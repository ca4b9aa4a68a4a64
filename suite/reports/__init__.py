"""What a store says: what each setting was worth, and plots."""

__all__ = ["plots", "report"]
