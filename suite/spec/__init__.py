"""What a user may write: one trial, how it is measured, many trials from one, and the YAML that holds them.

`yaml_file` needs no torch.
"""

__all__ = ["measure", "search_space", "trial", "yaml_file"]
