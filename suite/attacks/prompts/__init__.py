"""Attacks that change the prompts."""
