"""YAML files into typed configurations, with the origin of every value kept.

A file may inherit (`base: other.yaml`, relative to itself); overlays and `key.path=value` come on
top. Every problem of every layer is reported at once, one line each, with the file and line that
said it: `ds_configs/stages/tts.yaml:14: optim.learning_rate: unknown key; did you mean 'lr'?`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from slm.config.explain import Key, explain, real_path
from slm.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
_SECRET_KEY = re.compile(r"(_api_key|_secret|push_token)$")
_SECRET_VALUE = re.compile(r"\bhf_[A-Za-z0-9]{20,}\b")
_SECRET_NAMED = re.compile(r"(?<![a-z])(key|token|secret|wandb)(?![a-z])", re.IGNORECASE)
_FORTY_HEX = re.compile(r"[0-9a-f]{40}")
_PLAIN_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's where there is one: ten times as fast
_SCALARS = yaml.constructor.SafeConstructor()


@dataclass(frozen=True)
class Layered:
    """A merged mapping and where each of its leaves came from.

    Attributes:
        values: plain nested dicts and lists.
        origin: key path -> "file:line" or "command line".
    """

    values: dict[str, Any]
    origin: dict[Key, str]

    def where(self, path: Key) -> str:
        """The origin of a path, or of its nearest ancestor that has one."""
        while path and path not in self.origin:
            path = path[:-1]
        return self.origin.get(path, "")


class _Problems:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, where: str, key: str, message: str) -> None:
        self.lines.append(f"{where}: {key}: {message}" if key else f"{where}: {message}")

    def raise_if_any(self) -> None:
        if self.lines:
            raise ConfigError("\n".join(self.lines))


def dotted(path: Key) -> str:
    """`("replay", 1, "ratio")` as `replay[1].ratio`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else str(part))
    return text


def _plain(node: yaml.Node, where: str, path: Key, origin: dict[Key, str], problems: _Problems) -> Any:
    """A YAML node as plain Python, its lines noted and duplicate keys reported."""
    here = f"{where}:{node.start_mark.line + 1}"
    origin[path] = here
    if not isinstance(node, yaml.ScalarNode) and node.tag not in _PLAIN_TAGS:
        problems.add(here, dotted(path), f"not a plain value: {node.tag.removeprefix('tag:yaml.org,2002:')}")
        return None
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if not isinstance(key, str):
                problems.add(here, dotted(path), "a key has to be a plain word")
                continue
            if key in found:
                problems.add(f"{where}:{key_node.start_mark.line + 1}", dotted((*path, key)), "duplicate key")
            found[key] = _plain(value_node, where, (*path, key), origin, problems)
        return found
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, where, (*path, i), origin, problems) for i, item in enumerate(node.value)]
    assert isinstance(node, yaml.ScalarNode)
    if node.tag == "tag:yaml.org,2002:str" and not node.style and _NUMBER.fullmatch(node.value):
        return float(node.value)  # YAML 1.1 takes 2e-6 for text; people mean the number
    try:
        return _SCALARS.construct_document(node)
    except (yaml.YAMLError, ValueError, KeyError, AttributeError) as error:  # PyYAML lets `!!bool x` slip through
        problems.add(here, dotted(path), f"not a plain value: {getattr(error, 'problem', None) or error}")
        return None


def _at(where: str, mark: Any) -> str:
    return f"{where}:{mark.line + 1}" if mark is not None else where


def _parse(text: str, where: str, problems: _Problems) -> Layered:
    origin: dict[Key, str] = {}
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):
                problems.add(_at(where, event.start_mark), "", "YAML aliases are not accepted")
                return Layered({}, origin)
            if depth > MAX_DEPTH:  # before anything recurses into it
                problems.add(_at(where, event.start_mark), "", f"nested deeper than {MAX_DEPTH} levels")
                return Layered({}, origin)
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problems.add(
            _at(where, mark), "", f"not valid YAML: {getattr(error, 'problem', None) or str(error).splitlines()[0]}"
        )
        return Layered({}, origin)
    if node is None:
        return Layered({}, origin)
    if not isinstance(node, yaml.MappingNode):
        problems.add(f"{where}:1", "", "expected a mapping of keys to values")
        return Layered({}, origin)
    return Layered(_plain(node, where, (), origin, problems), origin)


def _merge(lower: Layered, upper: Layered) -> Layered:
    """`upper` over `lower`; mappings merge key by key, anything else is replaced whole."""
    origin = dict(lower.origin)

    def merge(low: Any, high: Any, path: Key) -> Any:
        if isinstance(low, dict) and isinstance(high, dict):
            return {
                key: merge(low[key], high[key], (*path, key))
                if key in low and key in high
                else high.get(key, low.get(key))
                for key in [*low, *(key for key in high if key not in low)]
            }
        for old in [known for known in origin if known[: len(path)] == path]:
            del origin[old]
        return high

    values = merge(lower.values, upper.values, ())
    origin.update(upper.origin)
    return Layered(values, origin)


def _read(path: Path, problems: _Problems, seen: tuple[Path, ...] = ()) -> Layered:
    if path.resolve() in seen:
        problems.add(str(path), "base", "inherits from itself")
        return Layered({}, {})
    try:
        if path.stat().st_size > MAX_BYTES:
            problems.add(str(path), "", "larger than 1 MiB: not a configuration")
            return Layered({}, {})
        text = path.read_text()
    except FileNotFoundError:
        near = sorted(str(other) for other in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        problems.add(str(path), "", "file not found" + (f"; there are: {', '.join(near)}" if near else ""))
        return Layered({}, {})
    except (OSError, UnicodeDecodeError) as error:
        problems.add(str(path), "", f"can't be read: {error}")
        return Layered({}, {})
    layer = _parse(text, str(path), problems)
    base = layer.values.pop("base", None) if isinstance(layer.values.get("base"), str) else None
    if base is None:
        return layer
    return _merge(_read(path.parent / base, problems, (*seen, path.resolve())), layer)


def _override(text: str, problems: _Problems) -> Layered:
    key, sign, value = text.partition("=")
    if not sign or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
        problems.add("command line", text, "expected key.path=value")
        return Layered({}, {})
    path: Key = tuple(key.split("."))
    layer = _parse(f"value: {value or 'null'}\n", f"command line: {key}", problems)  # in a mapping of our own
    nested: Any = layer.values.get("value")
    for part in reversed(path):
        nested = {part: nested}
    return Layered(nested, {path[:i]: "command line" for i in range(1, len(path) + 1)})


def _find_secrets(values: Any, path: Key, layer: Layered, problems: _Problems) -> None:
    if isinstance(values, dict):
        for key, value in values.items():
            if isinstance(value, str) and value and _SECRET_KEY.search(str(key)):
                problems.add(
                    layer.where((*path, key)),
                    dotted((*path, key)),
                    "secrets come from the environment, never from a file",
                )
            _find_secrets(value, (*path, key), layer, problems)
    elif isinstance(values, list):
        for i, value in enumerate(values):
            _find_secrets(value, (*path, i), layer, problems)
    elif isinstance(values, str) and (
        _SECRET_VALUE.search(values) or (_FORTY_HEX.fullmatch(values) and _SECRET_NAMED.search(dotted(path)))
    ):
        problems.add(layer.where(path), dotted(path), "looks like a secret; secrets come from the environment")


def _validate(cls: type[Model], layer: Layered, problems: _Problems, name: str) -> Model | None:
    _find_secrets(layer.values, (), layer, problems)
    try:
        return cls.model_validate(layer.values)
    except ValidationError as failure:
        for error in failure.errors():
            path = real_path(error["loc"], layer.values)
            problems.add(layer.where(path) or name, dotted(path), explain(error, cls, path, layer.values))
        return None


def read_layers(path: str | Path, overrides: Sequence[str] = (), overlays: Sequence[str | Path] = ()) -> Layered:
    """The merged, unvalidated mapping of a file, its bases, overlays and overrides.

    Raises:
        ConfigError: a file is missing or is no YAML, a key is given twice, an override is malformed.
    """
    problems = _Problems()
    layer = _read_all(path, overrides, overlays, problems)
    problems.raise_if_any()
    return layer


def _read_all(
    path: str | Path, overrides: Sequence[str], overlays: Sequence[str | Path], problems: _Problems
) -> Layered:
    layer = _read(Path(path), problems)
    for overlay in overlays:
        layer = _merge(layer, _read(Path(overlay), problems))
    for text in overrides:
        layer = _merge(layer, _override(text, problems))
    return layer


def load_config(
    cls: type[Model], path: str | Path, overrides: Sequence[str] = (), overlays: Sequence[str | Path] = ()
) -> Model:
    """Load and validate a configuration.

    Args:
        cls: the typed configuration.
        path: YAML file; its `base:` is followed.
        overrides: `key.path=value` texts, the value in YAML.
        overlays: YAML files laid over `path`, in order.

    Raises:
        ConfigError: lists every problem found, one line each.
    """
    problems = _Problems()
    layer = _read_all(path, overrides, overlays, problems)
    config = _validate(cls, layer, problems, str(path))
    problems.raise_if_any()
    assert config is not None
    return config


def from_overrides(cls: type[Model], overrides: Sequence[str]) -> Model:
    """A configuration given on the command line alone, as `key.path=value` texts.

    Raises:
        ConfigError: lists every problem found.
    """
    problems = _Problems()
    layer = Layered({}, {})
    for text in overrides:
        layer = _merge(layer, _override(text, problems))
    config = _validate(cls, layer, problems, "command line")
    problems.raise_if_any()
    assert config is not None
    return config


def from_mapping(cls: type[Model], values: Mapping[str, Any], where: str) -> Model:
    """Validate a plain mapping; `where` stands for the file in messages.

    Raises:
        ConfigError: lists every problem found.
    """
    problems = _Problems()
    config = _validate(cls, Layered(dict(values), {}), problems, where)
    problems.raise_if_any()
    assert config is not None
    return config
