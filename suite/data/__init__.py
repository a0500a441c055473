"""Datasets: sources, betons, the FFCV loader and the distilled set."""
