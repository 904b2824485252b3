"""`slm`: trains spoken language models in stages, measures what they forget, and prevents it."""

__version__ = "0.1.0"
