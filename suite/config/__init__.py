"""What all settings have in common: strict groups of them, registries, canonical JSON, where a trial runs.

The lowest room: plain values, without torch.
"""

__all__ = ["canonical", "errors", "registry", "runtime", "settings"]
