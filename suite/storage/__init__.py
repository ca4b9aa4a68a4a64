"""What outlives a process: stages, who is at work on them, the store around them, the numeric environment of keys.

Stages and leases need no torch.
"""

__all__ = ["environment", "leases", "location", "provenance", "stages", "store"]
