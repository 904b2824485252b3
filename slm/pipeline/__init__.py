"""A run as a graph of artifacts: what has to be made, by which commands, and making it.

Owns the graph, the commands as pure functions, the local run with its lock, and the status table.
Does not own what a command does: every step is a command that a person could type.
"""
