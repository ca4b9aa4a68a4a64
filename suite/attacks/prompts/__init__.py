"""Attacks that put the questions in another way."""
