"""Nightly grids: a budget, a fresh store a night, a history in small files, and rules that say what has drifted."""
