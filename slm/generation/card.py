"""The card of a generated data set, and its way to the Hub."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from slm.config.generation import GenerateJob
from slm.errors import ConfigError, MachineError

TOKEN = "HF_TOKEN"

_COLUMNS = """| column | holds |
|---|---|
| `id`, `task` | the question's name, and the recipe that wrote its prompt |
| `prompt` | what the model was asked, units as `<\\|u\\|>` |
| `interleaved` | everything it said: text and units |
| `text`, `transcript` | its answer in writing; what it heard (spoken questions) |
| `units`, `audio` | its spoken answer, as units and as 16 kHz sound; empty where it did not speak |
| `finished`, `faults` | whether it ended by itself; what is wrong with the form |
"""


def card(job: GenerateJob, task: str, about: Mapping[str, Any]) -> str:
    """README.md of the data set; tells loaders where the rows are, and names no place on this machine."""
    how = "greedy" if job.temperature == 0 else f"temperature {job.temperature:g}, top_p {job.top_p:g}"
    how += ", constrained to well-formed answers" if job.constrained else ""
    how += f", LoRA scale {job.lora_scale:g}" if job.lora_scale != 1 else ""
    source = PurePath(job.audio or job.data or "").name
    return (
        "---\nconfigs:\n- config_name: default\n  data_files: data/*.parquet\n---\n\n"
        f"# Answers of {PurePath(job.model).name}\n\n"
        f"`slm generate`: task `{task}`, questions of `{source}`, {how}, at most {job.max_new_tokens} tokens each.\n\n"
        f"{about['answers']:,} answers, {about['spoken_s'] / 60:.1f} minutes of speech, {about['skipped']:,} questions "
        f"skipped.\n\n{_COLUMNS}"
    )


def hub_token() -> str:
    """The Hub's token, from the environment and nowhere else.

    Raises:
        ConfigError: HF_TOKEN is not set.
    """
    token = os.environ.get(TOKEN, "")
    if not token:
        raise ConfigError(
            f"--push-to-hub needs {TOKEN} in the environment", mend=f"export {TOKEN}=…, a token that may write"
        )
    return token


def push(folder: str | Path, name: str, token: str, *, public: bool) -> str:
    """Publish a finished data set.

    Args:
        name: USER/NAME; made, private unless `public`, when it is not there.
        token: see `hub_token`.

    Returns:
        Its address.

    Raises:
        MachineError: the Hub refuses it or can't be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
    try:
        api.create_repo(name, repo_type="dataset", private=not public, exist_ok=True)
        api.upload_folder(repo_id=name, repo_type="dataset", folder_path=str(folder), commit_message="Add answers")
    except Exception as error:  # of the Hub's client, or of what that uses for the network
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MachineError(
            f"the Hub did not take the data set: {told}",
            where=name,
            mend=f"{folder} is complete; run the same command again to publish it",
        ) from error
    return f"{api.endpoint}/datasets/{name}"
