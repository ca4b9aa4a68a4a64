"""The vLLM engine: a pool of warm processes on Ray that all trials share.

`kind` (what the registry knows), `build` (which vLLM is installed) and `settings` import neither vLLM nor Ray.
"""

__all__ = ["build", "engine", "kind", "pool", "settings"]
