"""What pydantic found wrong, in the words and key paths of the person who wrote the file."""

from __future__ import annotations

import difflib
from typing import Any, get_args, get_origin

from pydantic import BaseModel

Key = tuple[str | int, ...]
"""Keys and list positions from the top of a file to a value."""


def _known_fields(cls: type[BaseModel], path: Key, values: Any) -> list[str]:
    """Names of the keys of the section that `path` points into; of a union, the member that its tag names."""
    current: Any = cls
    for part in path[:-1]:
        if isinstance(part, int):
            values = values[part]
            continue
        values = values[part] if isinstance(values, dict) else None
        if isinstance(current, type) and issubclass(current, BaseModel):
            fields = {field.alias or name: field for name, field in current.model_fields.items()}
            if part not in fields:
                return []
            current = fields[str(part)].annotation
            if isinstance(values, dict) and get_origin(current) is dict:
                continue  # the next part is a free key, not a field
        sections = _sections_of(current)
        named = [section for section in sections if isinstance(values, dict) and _is_tagged(section, values)]
        current = next(iter(named or sections), None)
    return [field.alias or name for name, field in getattr(current, "model_fields", {}).items()]


def _is_tagged(section: type[BaseModel], values: dict[str, Any]) -> bool:
    """Whether the values hold the section's tag: a field that can only have one value, as `kind: merge`."""
    fields = section.model_fields.items()
    return any(get_args(field.annotation) == (values.get(name),) for name, field in fields if name in values)


def _sections_of(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for inner in get_args(annotation) for section in _sections_of(inner)]


def explain(error: Any, cls: type[BaseModel], path: Key, values: Any) -> str:
    """One of pydantic's errors as one line.

    Args:
        error: an entry of `ValidationError.errors()`.
        cls: the model that was validated.
        path: key path of the value (`real_path`).
        values: what was validated.
    """
    kind, given = error["type"], error.get("input")
    if kind == "extra_forbidden":
        known = _known_fields(cls, path, values)
        wrong = str(path[-1])
        initials = "".join(word[:1] for word in wrong.split("_"))
        near = difflib.get_close_matches(wrong, known, 1, 0.5) or [
            name for name in known if name in wrong.split("_") or name == initials
        ]
        hint = f"; did you mean '{near[0]}'?" if near else ""
        return f"unknown key{hint}" + (f" (known: {', '.join(known)})" if known else "")
    if kind == "missing":
        return "is required"
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        context = error["ctx"]
        found = f", got '{context['tag']}'" if "tag" in context else ""
        options = context.get("expected_tags", "")
        tag = context["discriminator"].strip("'")
        return f"needs {tag}{': one of ' + options if options else ''}{found}"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if kind.startswith("value_error"):
        return message
    shown = repr(given) if not isinstance(given, dict | list) else type(given).__name__
    return f"expected {message}, got {shown}"


def real_path(raw: tuple[str | int, ...], values: Any) -> Key:
    """Pydantic's location without the union tags it inserts: only parts that exist in the data, and the last."""
    path: list[str | int] = []
    current = values
    for i, part in enumerate(raw):
        inside = (isinstance(current, dict) and part in current) or (
            isinstance(current, list) and isinstance(part, int) and part < len(current)
        )
        if inside:
            path.append(part)
            current = current[part]
        elif i == len(raw) - 1 and isinstance(current, dict) and isinstance(part, str):
            path.append(part)
    return tuple(path)
