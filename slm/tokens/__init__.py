"""The token format: units as text, the vocabulary and its fingerprint, chat rendering, word alignments, interleaving.

Owns how a conversation with speech becomes token ids; knows neither audio nor data sets.
"""
