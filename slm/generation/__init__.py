"""Generation: batches of prompts to token ids, and token ids to text, units and a wave.

Owns decoding and the splitting of an output; knows no task and no data set.
"""
