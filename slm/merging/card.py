"""The model card of a merged model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml


def model_card(recipe: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Markdown: what was merged, how, and from which artifacts."""
    rows = "\n".join(f"| {label} | `{fingerprint[:16]}` |" for label, fingerprint in sorted(inputs.items()))
    return (
        "---\nlibrary_name: transformers\ntags: [mergekit, merge, spoken-language-model]\n---\n"
        f"# Merged by {recipe['merge_method']}\n\n"
        "Adapters were folded into their base in fp32, then merged by mergekit with this recipe:\n\n"
        f"```yaml\n{yaml.safe_dump(dict(recipe), sort_keys=False)}```\n\n"
        f"| model | fingerprint |\n|---|---|\n{rows}\n"
    )
