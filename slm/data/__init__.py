"""Training data: shards written and read, their order, mixture and packing, and the loader of a run.

Owns format 1 (`data_shards/README.md`) and what every rank reads at every step; knows neither audio nor
tensors (numpy in, numpy out; no torch).
"""
