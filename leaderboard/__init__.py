"""Results: what a row is (`schema`), where rows live (`store`), what they say (`ranking`) and how it looks (`page`).

Imports neither torch nor Ray, so that a board can be read, checked and ranked on any laptop.
"""
