"""An HPC batch benchmark suite for large-scale dataset distillation."""

__version__ = "0.1.0"
