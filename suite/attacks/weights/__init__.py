"""Attacks that edit weights: quantization, pruning, noise, merging, ablated directions."""
