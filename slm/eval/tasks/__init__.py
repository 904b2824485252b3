"""The kinds of evaluation, one file each; a scorer is imported when it is named.

Owns what counts as right for each kind; knows no model and no file.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from slm.errors import ConfigError

if TYPE_CHECKING:
    from slm.eval.tasks.task import Scorer

SCORERS: dict[str, str] = {
    "text_qa": "slm.eval.tasks.text_qa:TextQA",
    "instructions": "slm.eval.tasks.instructions:Instructions",
    "asr": "slm.eval.tasks.asr:Asr",
    "tts": "slm.eval.tasks.tts:Tts",
    "sqa": "slm.eval.tasks.sqa:Sqa",
}
"""Name -> `module:class`."""


def scorer(name: str) -> Scorer:
    """The scorer of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in SCORERS:
        raise ConfigError(
            f"no scorer is called {name!r}",
            where="tasks",
            mend=f"give the set one of scorer: {', '.join(SCORERS)}",
        )
    module, _, attribute = SCORERS[name].partition(":")
    found: Scorer = getattr(importlib.import_module(module), attribute)()
    return found
