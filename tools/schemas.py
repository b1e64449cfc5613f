"""The JSON Schemas that tools publish: of their arguments, and of their structured answers.

Clients check every answer against its schema, some of them slowly, and hand both to a model. So the schemas are plain:
no generated titles, and those of answers with their references resolved and their optional parts as one type.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

_REFERENCE: Final = "#/$defs/"


def input_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The schema of a tool's arguments."""
    return model.model_json_schema(schema_generator=_PlainSchema)


def output_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The schema of a tool's structured answer. Later versions may answer more: unknown fields are allowed.

    None of its fields is required at the top: some clients (the TypeScript SDK's) check a failed call's
    ``{code, message, retryable}`` against it too, and would show people their complaint instead of our error.
    """
    schema = model.model_json_schema(mode="serialization", schema_generator=_PlainSchema)
    definitions = schema.pop("$defs", {})
    resolved = _resolve(schema, definitions)
    assert isinstance(resolved, dict)
    resolved.pop("required", None)
    return resolved


class _PlainSchema(GenerateJsonSchema):
    """Without the generated titles, which repeat each field's name and cost every client tokens."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def generate(self, schema: Any, mode: Any = "validation") -> dict[str, Any]:
        generated = super().generate(schema, mode)
        for part in (generated, *generated.get("$defs", {}).values()):
            part.pop("title", None)
            part.pop("description", None)
        return generated


def _resolve(schema: Any, definitions: dict[str, Any]) -> Any:
    """The schema with its references replaced by what they stand for. Records do not contain themselves."""
    if isinstance(schema, list):
        return [_resolve(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    reference = schema.get("$ref")
    if isinstance(reference, str):
        beside = {name: part for name, part in schema.items() if name != "$ref"}
        schema = {**definitions[reference.removeprefix(_REFERENCE)], **beside}
    plain: dict[str, Any] = {}
    for name, part in schema.items():
        if name == "properties":
            # Its keys are names of fields, not words of JSON Schema.
            plain[name] = {field: _resolve(its, definitions) for field, its in part.items()}
        elif name not in ("default", "format") and (name, part) != ("additionalProperties", False):
            plain[name] = _resolve(part, definitions)
    return _nullable(plain)


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    """``anyOf`` something and null as one type, where the something has a type of its own."""
    match schema.get("anyOf"):
        case [{"type": str(kind)} as value, {"type": "null"}]:
            beside = {name: part for name, part in schema.items() if name != "anyOf"}
            options = {"enum": [*value["enum"], None]} if "enum" in value else {}
            return {**value, **beside, "type": [kind, "null"], **options}
        case _:
            return schema
