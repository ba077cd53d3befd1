"""Data that a model is fitted to and judged on, and what its outputs are worth."""
