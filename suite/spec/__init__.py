"""The suite's vocabulary: datasets, recipes, stages and keys. Imports nothing heavier than the standard library."""
