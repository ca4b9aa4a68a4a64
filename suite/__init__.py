"""Running trials: rooms with one subject each. A room imports from those below it (docs/architecture.md); its
`__all__` is what the rooms above may take: modules, and in the rooms of an axis the axis itself.
"""
