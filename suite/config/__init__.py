"""The basis of all settings: strict groups of settings, registries, canonical JSON, errors, and the runtime.

The lowest package: plain values, without torch.
"""

__all__ = ["canonical", "errors", "numbers", "registry", "runtime", "settings"]
