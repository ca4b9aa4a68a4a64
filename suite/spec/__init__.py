"""Specs that a user writes: one trial, its measurement, many trials from one, and the YAML files that hold them.

`yaml_file` needs no torch.
"""

__all__ = ["measure", "packages", "random_change", "search_space", "trial", "yaml_file"]
