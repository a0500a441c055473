"""Distilled sets that leave the suite, for others to train on, and sets made elsewhere that are scored by it."""
