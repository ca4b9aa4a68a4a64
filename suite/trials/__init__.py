"""Where to start reading: `run` is a trial from end to end, `given_checkpoint` measures a checkpoint without a trial.

`harness` is the evaluation that both share. `preflight` checks trials and counts their cost before any computation.
"""

__all__ = ["given_checkpoint", "harness", "matching", "on_dev", "preflight", "run", "task_data"]
