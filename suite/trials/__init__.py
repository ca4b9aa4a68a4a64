"""The front door: `run` is a trial from end to end, `given_checkpoint` one without unlearning, `harness` what both use.

`preflight` says beforehand what cannot work and what the rest costs.
"""

__all__ = ["early_stopping", "given_checkpoint", "harness", "preflight", "run", "task_data"]
