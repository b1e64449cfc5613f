"""Checks the arguments of a call against a model and says in our own words what is wrong with them.

The check is JSON Schema's, not Python's: ``"5"`` is no number and ``true`` is no 1, unknown arguments are refused.
A message names the argument and the remedy and never repeats a value, which may be long or secret.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import UnionType
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin

import pydantic_core
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from server.errors import ErrorCode, RookeryError

Arguments = TypeVar("Arguments", bound=BaseModel)

_MAX_NAME: Final = 60
"""Longest part of a name given by the caller that a message repeats."""

_EXPECTED: Final[Mapping[str, str]] = {
    "string_type": "must be a string",
    "string_sub_type": "must be a string",
    "float_type": "must be a number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "is too large a number",
    "bool_type": "must be true or false",
    "finite_number": "must be a finite number",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
}

_BOUNDS: Final[Mapping[str, tuple[str, str]]] = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def parse_arguments(model: type[Arguments], arguments: Mapping[str, Any], *, tool: str) -> Arguments:
    """Check a call's arguments.

    Args:
        model: what the tool takes; a model that forbids unknown fields.
        arguments: as they came over the wire.
        tool: the tool's name, for messages.

    Raises:
        RookeryError: ``invalid_argument``; its message lists every fault.
    """
    try:
        document = pydantic_core.to_json(_with_decoded_strings(model, arguments), inf_nan_mode="constants")
    except (ValueError, RecursionError) as error:
        raise RookeryError(
            ErrorCode.INVALID_ARGUMENT,
            f"The arguments of {tool} are not valid JSON text (lone surrogates, or nested too deeply): "
            "send plain Unicode.",
        ) from error
    try:
        return model.model_validate_json(document, strict=True)
    except ValidationError as error:
        raise RookeryError(ErrorCode.INVALID_ARGUMENT, _explain(model, error, tool)) from error


def _with_decoded_strings(model: type[BaseModel], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Some clients send objects and lists as JSON text. Where text is no valid value anyway, it is decoded."""
    decoded = dict(arguments)
    for name, value in arguments.items():
        field = model.model_fields.get(name)
        if field is None or not isinstance(value, str) or _takes_text(field):
            continue
        try:
            candidate = json.loads(value)
        except (ValueError, RecursionError):
            continue
        if isinstance(candidate, dict | list):
            decoded[name] = candidate
    return decoded


def _takes_text(field: FieldInfo) -> bool:
    annotation = field.annotation
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType, Literal) else (annotation,)
    return any(member is str or isinstance(member, str) for member in members)


def _explain(model: type[BaseModel], error: ValidationError, tool: str) -> str:
    faults = [_fault(model, details, tool) for details in error.errors(include_url=False, include_input=False)[:5]]
    return "; ".join(dict.fromkeys(faults)) + "."


def _fault(model: type[BaseModel], details: pydantic_core.ErrorDetails, tool: str) -> str:
    kind, context = details["type"], details.get("ctx", {})
    name = _location(details["loc"])
    if kind == "missing":
        return f"`{name}` is missing: {tool} needs it"
    if kind == "extra_forbidden":
        takes = f", which takes {', '.join(model.model_fields)}" if len(details["loc"]) == 1 else ": leave it out"
        return f"`{name}` is not known to {tool}{takes}"
    if kind in _EXPECTED:
        return f"`{name}` {_EXPECTED[kind]}"
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        return f"`{name}` must be {words} {context[key]:g}"
    if kind in ("literal_error", "enum"):
        return f"`{name}` must be one of {context.get('expected')}"
    if kind == "string_pattern_mismatch":
        return f"`{name}` is malformed: send it exactly as it was answered"
    if kind == "string_too_long":
        return f"`{name}` is longer than {context.get('max_length')} characters: shorten it"
    if kind == "string_too_short":
        return f"`{name}` is empty: give it a value"
    if kind == "too_long":
        return f"`{name}` has more than {context.get('max_length')} entries: send fewer"
    if kind == "too_short":
        return f"`{name}` must have at least {context.get('min_length')} entry"
    if kind == "value_error":
        return f"`{name}` {context.get('error')}" if name else f"{context.get('error')}"
    if kind == "json_invalid":
        return f"the arguments of {tool} are not valid JSON text: send plain Unicode"
    return f"`{name}` is not valid: {details['msg'][:200]}"


def _location(path: tuple[int | str, ...]) -> str:
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            shown = part if len(part) <= _MAX_NAME else part[:_MAX_NAME] + "…"
            text += f".{shown}" if text else shown
    return text
