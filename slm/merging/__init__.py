"""Models made out of models: mergekit recipes over labelled steps, and the LoRA-scale discount.

Adapters are folded into the base in fp32 before anything is merged: in bf16 most of a stage's small
change would be rounded away.
"""
