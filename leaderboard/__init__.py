"""Results: what a row is (`schema`), where rows live (`store`), what they say (`ranking`) and how it looks (`page`).
How bytes become visible, here and in `suite`, is in `storage`.

Imports neither torch nor Ray, so that a board can be read, checked and ranked on any laptop.
"""
