"""Makes a value that fits a JSON schema, for answers that must have a form and no scenario says which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

MAX_DEPTH: Final = 12


def sample(schema: object, words: str, depth: int = 0) -> Any:
    """A plain value for the common parts of a schema; strings are the first words of ``words``."""
    if not isinstance(schema, Mapping) or depth > MAX_DEPTH:
        return None
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    if isinstance(choices := schema.get("enum"), list) and choices:
        return choices[0]
    for key in ("anyOf", "oneOf", "allOf"):
        if isinstance(choices := schema.get(key), list) and choices:
            return sample(choices[0], words, depth + 1)
    kind = schema.get("type")
    match kind[0] if isinstance(kind, list) and kind else kind:
        case "string":
            return " ".join(words.split()[:6]) or "scripted"
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return True
        case "array":
            return [sample(schema.get("items"), words, depth + 1) for _ in range(int(schema.get("minItems", 1)))]
        case "null":
            return None
        case _:
            properties = schema.get("properties")
            named = properties if isinstance(properties, Mapping) else {}
            return {name: sample(part, words, depth + 1) for name, part in named.items()}
