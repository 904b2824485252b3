"""The token format: units as text, the unit vocabulary and its fingerprint, chat rendering, interleaving.

Owns how a conversation with speech becomes token ids; knows neither audio nor data sets.
"""
