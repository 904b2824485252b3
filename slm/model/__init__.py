"""Models: loading any reference, growing the vocabulary off-line, LoRA, the supervised forward pass.

Owns what happens to weights outside the optimizer step; knows no DeepSpeed and no data set.
"""
