"""Listening: a page at which one speaks to models and hears and sees what they say.

Owns the page (gradio, an optional extra) and the drawing of units; all answers come from the generation room.
"""
