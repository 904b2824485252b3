"""Generation: questions to prompts, prompts to token ids, and token ids to text, units and a wave.

Owns decoding, its grammar, the splitting of an output, and data sets of answers; knows no scores.
"""
