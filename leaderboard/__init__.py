"""Results: the tables of the board and their files (`board`), the ranking (`ranking`), the HTML page (`page`) and
numbers of other suites (`peers`). How files are written, here and in `suite`, is in `storage`.

Imports neither torch nor Ray, so that a board can be read, checked and ranked on any laptop.
"""
