"""The DeepSpeed engine: composition of a stage, the step loop, checkpoints, preemption.

The only room that imports deepspeed.
"""
