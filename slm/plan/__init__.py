"""What a run will cost before it is started, and how well it uses the machine while it runs.

Owns shapes, FLOPs, memory and time as arithmetic. Knows no torch and no DeepSpeed: it works on a login node.
"""
