"""The vLLM engine: a pool of warm processes on Ray that all trials share.

`build` (which vLLM is installed) and `settings` do not import vLLM.
"""

__all__ = ["build", "engine", "pool", "settings"]
