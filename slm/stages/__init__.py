"""Recipes: how an example of a stage becomes a prompt and its answer, for training and evaluation alike.

Owns the four stage formats (llm, asr, tts, sqa); knows no data set and no tokenizer.
"""

from slm.stages.asr import ASR
from slm.stages.llm import LLM
from slm.stages.recipe import Form, Recipe
from slm.stages.sqa import SQA
from slm.stages.tts import TTS

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (LLM, ASR, TTS, SQA)}

__all__ = ["Form", "RECIPES", "Recipe"]
