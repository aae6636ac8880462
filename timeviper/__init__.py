"""TimeViper recipes: training for a hybrid Mamba-2 / attention video language model."""

__version__ = "0.1.0"
