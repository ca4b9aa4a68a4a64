"""The vLLM engine: warm processes in a pool on Ray that all trials share.

`build` and `settings` say what there is and what is asked for, without importing vLLM.
"""

__all__ = ["build", "engine", "pool", "settings"]
