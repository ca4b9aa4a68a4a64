"""What outlives a process: stages, leases on them, the store that holds them, and the environment in their keys.

Stages and leases need no torch.
"""

__all__ = ["environment", "leases", "location", "provenance", "stages", "store"]
