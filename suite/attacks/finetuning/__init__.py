"""Attacks that train: relearning, benign fine-tuning, negated task vectors."""
