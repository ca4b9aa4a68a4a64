"""A trial that takes a second."""

from __future__ import annotations

from suite.testing.scene import SMALL

__all__ = ["SMALL"]
