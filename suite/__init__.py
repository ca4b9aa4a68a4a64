"""Running trials. Each package here has one subject and imports only from the packages below it (docs/architecture.md).

A package's `__all__` lists what the packages above it may import: its modules, or the registry of an axis.
"""
