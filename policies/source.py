"""YAML texts as data that remember their lines, and the policy language's faults said with file, line and remedy."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import yaml
from pydantic import BaseModel, ValidationError

from policies import schema
from policies.errors import PolicyError

MAX_TEXT: Final = 262_144
MAX_DEPTH: Final = 20

Location = tuple[str | int, ...]

_Loader: Final[type[yaml.SafeLoader]] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The loader in C where PyYAML was built with it."""


class Lines:
    """Where in a text each value stands."""

    def __init__(self) -> None:
        self._lines: dict[Location, int] = {(): 1}

    def note(self, location: Location, line: int) -> None:
        self._lines[location] = line

    def of(self, location: Sequence[str | int]) -> int:
        """The line of a value, or of the innermost known value around it."""
        path = tuple(location)
        while path not in self._lines:
            path = path[:-1]
        return self._lines[path]


def read_yaml(text: str, file: str) -> tuple[Any, Lines]:
    """Data and lines of a YAML text with mappings, lists, texts, numbers and booleans only.

    Raises:
        PolicyError: it is too large or too deep, no YAML, or uses anchors, tags, merge keys or a key twice.
    """
    if len(text) > MAX_TEXT:
        raise PolicyError(f"the file is larger than {MAX_TEXT:,} characters", file=file, remedy="split the policy")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        lines = Lines()
        return (None if node is None else _value(loader, node, (), lines, file, set())), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise PolicyError(
            f"this is not YAML: {error.problem or error.context}",
            file=file,
            line=None if mark is None else mark.line + 1,
            remedy="check indentation, quotes and colons",
        ) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, PolicyError):
            raise
        raise PolicyError("this is not YAML", file=file, remedy="check for control characters") from None
    finally:
        loader.dispose()


def _value(loader: yaml.SafeLoader, node: yaml.Node, at: Location, lines: Lines, file: str, seen: set[int]) -> Any:
    line = node.start_mark.line + 1
    lines.note(at, line)
    seen.add(id(node))
    if len(at) > MAX_DEPTH:
        raise PolicyError("the file is nested too deeply", file=file, line=line)
    if node.tag not in _TAGS:
        raise PolicyError(f"the tag {node.tag} is not used here", file=file, line=line, remedy="quote the value")
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key_line = key_node.start_mark.line + 1
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is None or key == "<<":
                raise PolicyError("a key must be a plain word", file=file, line=key_line)
            if key in result:
                raise PolicyError(f"the key {key!r} stands here twice", file=file, line=key_line, remedy="keep one")
            _refuse_alias(value_node, seen, file, key_line)
            result[key] = _value(loader, value_node, (*at, key), lines, file, seen)
            lines.note((*at, key), key_line)
        return result
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_alias(item, seen, file, line)
        return [_value(loader, item, (*at, index), lines, file, seen) for index, item in enumerate(node.value)]
    if node.tag == _BOOL and node.value.lower() not in ("true", "false"):
        # YAML 1.1 reads yes, no, on and off as booleans; as in YAML 1.2 they are words here.
        return node.value
    return loader.construct_object(node, deep=True)


def _refuse_alias(node: yaml.Node, seen: set[int], file: str, line: int) -> None:
    """An alias is the very node that its anchor named; used often enough, a small file grows without bound."""
    if id(node) in seen:
        raise PolicyError("aliases are not used here", file=file, line=line, remedy="write the value out")


_BOOL: Final = "tag:yaml.org,2002:bool"


_TAGS: Final = frozenset(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq"))


def read_policy_text(text: str, file: str) -> tuple[schema.PolicyModel, Lines]:
    """A policy's text, validated.

    Raises:
        PolicyError: with line and remedy of the first fault.
    """
    data, lines = read_yaml(text, file)
    if not isinstance(data, dict):
        raise PolicyError("the file holds no policy", file=file, line=1, remedy="begin with version: 1 and rules:")
    try:
        return schema.PolicyModel.model_validate(_tuples(data)), lines
    except ValidationError as error:
        raise policy_error(error, data, lines, file) from None


def _tuples(value: Any) -> Any:
    """Lists as tuples: the models are strict, and frozen values are tuples."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def policy_error(error: ValidationError, data: Any, lines: Lines, file: str) -> PolicyError:
    """The first fault that pydantic found, in the words of the author of the file."""
    faults = error.errors(include_url=False)
    # Of the faults of one line the misspelt key comes first: it explains why another is missing.
    fault = min(
        faults, key=lambda found: (lines.of(_real(found["loc"], data)), found["type"] == "missing", -len(found["loc"]))
    )
    location = _real(fault["loc"], data)
    key = location[-1] if location else "the file"
    where = ".".join(str(part) for part in location) or "the file"
    kind = fault["type"]
    line = lines.of(location)
    if kind == "extra_forbidden":
        known = _keys_at(location[:-1])
        close = difflib.get_close_matches(str(key), known, n=1)
        return PolicyError(
            f"unknown key {str(key)[:60]!r}",
            file=file,
            line=line,
            remedy=f"did you mean {close[0]!r}?" if close else f"known keys here: {', '.join(known)}",
        )
    if kind == "missing":
        return PolicyError(f"the key {key!r} is missing", file=file, line=line, remedy=f"add {key}:")
    message = str(fault["msg"]).removeprefix("Value error, ")
    remedy = "quote it" if kind == "string_type" else None
    return PolicyError(f"{where}: {message[:1].lower()}{message[1:]}", file=file, line=line, remedy=remedy)


def _real(location: Sequence[str | int], data: Any) -> Location:
    """A pydantic location without the steps that name a branch of a union and not a place in the file."""
    found: list[str | int] = []
    for place, step in enumerate(location):
        if isinstance(data, dict) and isinstance(step, str):
            inside, last = data.get(step, _ABSENT), place == len(location) - 1
            if inside is _ABSENT and not last:
                continue
            data = inside
        elif isinstance(data, list) and isinstance(step, int) and step < len(data):
            data = data[step]
        else:
            continue
        found.append(step)
    return tuple(found)


_ABSENT: Final = object()


_MODELS: Final[Mapping[Location, type[BaseModel]]] = {
    (): schema.PolicyModel,
    ("limits",): schema.LimitsModel,
    ("roles", "*"): schema.RoleModel,
    ("rules", "*"): schema.RuleModel,
    ("rules", "*", "when"): schema.WhenModel,
    ("rules", "*", "when", "after"): schema.AfterModel,
    ("rules", "*", "when", "count"): schema.CountModel,
    ("rules", "*", "ask"): schema.AskModel,
    ("rules", "*", "examples"): schema.ExamplesModel,
    ("rules", "*", "network", "*"): schema.HostModel,
}


def _keys_at(location: Location) -> list[str]:
    """The keys that a mapping at this place may have."""
    general = tuple(
        "*" if isinstance(step, int) or (place == 1 and location[0] == "roles") else step
        for place, step in enumerate(location)
    )
    model = _MODELS.get(general)
    return [] if model is None else list(model.model_fields)
