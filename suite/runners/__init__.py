"""Runners: the same trials, in this process or on a Ray cluster."""

from __future__ import annotations

from suite.runners.base import Outcome, TrialJob, run_one
from suite.runners.local import run_here

__all__ = ["Outcome", "TrialJob", "base", "null_trials", "ray_tune", "run_here", "run_one", "search"]
