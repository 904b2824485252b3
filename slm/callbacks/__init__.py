"""What happens beside training: progress on the screen, metrics on disk, trackers.

Owns the hooks and one file per callback. Does not own what is trained or when: the engine calls
the hooks with plain dictionaries, on rank 0 only.
"""
