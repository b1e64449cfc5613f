"""A request taken apart into what is judged: the call itself, and of a shell command every part by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from policies.catalogue import MCP_TOOL, TOOLS, FieldKind, canonical_name, input_fault
from policies.hosts import HostError, parse_host, url_host
from policies.parts import Part, PartKind, PathClaim, RefusedError, claim_of, clean, glob_claim
from policies.paths import ResolvedPath, UnresolvablePathError, hidden_character, resolve
from policies.shell_parts import bash_parts
from policies.types import Facts, ToolRequest

MAX_PATTERN: Final = 4096


def parts_of(request: ToolRequest, facts: Facts) -> tuple[Part, ...]:
    """The parts of a call of a known tool, the call itself first.

    Raises:
        RefusedError: the input is malformed, holds an unknown field, control characters or a path that cannot be
            judged, or the command cannot be read.
    """
    name = canonical_name(request.tool)
    tool = TOOLS.get(name)
    if tool is None:
        if MCP_TOOL.fullmatch(name) is None:
            raise RefusedError("rookery:unknown-tool", f"The tool {clean(request.tool, 60)} is not known here.")
        return (Part(PartKind.TOOL, name, name, name, input=request.input),)
    if (fault := input_fault(tool, request.input)) is not None:
        raise RefusedError("rookery:input", f"{fault[:1].upper()}{fault[1:]}: correct the call.")
    _check_characters(tool.fields, request.input)
    if name == "Bash":
        return bash_parts(request, facts)
    claims = _claims(request.input, tool.fields, facts, searches=tool.searches)
    found = _hosts(request.input, tool.fields)
    text = " ".join([name, *(claim.candidates[0] for claim in claims[:1]), *found[:1]])
    return (Part(PartKind.TOOL, name, name, clean(text), claims=claims, hosts=found, input=request.input),)


def _check_characters(fields: Mapping[str, FieldKind], given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        kind = fields.get(name)
        texts = [value] if isinstance(value, str) else value if kind is FieldKind.HOSTS else []
        if kind not in _CHECKED or not isinstance(texts, list | tuple):
            continue
        for text in texts:
            hidden = hidden_character(str(text), allowed="\t\n" if kind is FieldKind.COMMAND else "")
            if hidden is not None:
                raise RefusedError(
                    "rookery:characters",
                    f"The field {name} holds the control or format character {hidden}: write it without; text that "
                    "needs such characters goes into a file with Write.",
                )


_CHECKED: Final = frozenset(
    {
        FieldKind.COMMAND,
        FieldKind.READ_PATH,
        FieldKind.WRITE_PATH,
        FieldKind.FILE_GLOB,
        FieldKind.URL,
        FieldKind.HOSTS,
    }
)


def _hosts(given: Mapping[str, Any], fields: Mapping[str, FieldKind]) -> tuple[str, ...]:
    found: list[str] = []
    for name, value in given.items():
        kind = fields.get(name)
        try:
            if kind is FieldKind.URL and isinstance(value, str):
                found.append(url_host(value)[0])
            elif kind is FieldKind.HOSTS and value:
                found.extend(parse_host(str(host)) for host in value)
        except HostError as error:
            raise RefusedError("rookery:host", f"{name}: {error}.") from None
    return tuple(dict.fromkeys(found))


def _claims(
    given: Mapping[str, Any], fields: Mapping[str, FieldKind], facts: Facts, *, searches: bool
) -> tuple[PathClaim, ...]:
    """The paths of a file tool's call."""
    claims: list[PathClaim] = []
    root: ResolvedPath | None = None
    try:
        for name, value in given.items():
            kind = fields[name]
            if isinstance(value, str) and kind in (FieldKind.READ_PATH, FieldKind.WRITE_PATH):
                root = resolve(value, facts)
                claims.append(claim_of(root, reads=kind is FieldKind.READ_PATH, writes=kind is FieldKind.WRITE_PATH))
        if not searches:
            return tuple(claims)
        if root is None:
            root = resolve(facts.cwd or facts.workspace, facts)
            claims.append(claim_of(root, reads=True, writes=False))
        patterns = [
            value for name, value in given.items() if fields[name] is FieldKind.FILE_GLOB and isinstance(value, str)
        ]
        narrowing = [pattern for pattern in patterns if not pattern.startswith("!")]
        if not narrowing:
            claims[-1] = PathClaim(claims[-1].candidates, claims[-1].forms, deep=True)
        start = root
        claims.extend(_search_claim(pattern, start, facts) for pattern in narrowing)
    except UnresolvablePathError as error:
        raise RefusedError("rookery:path", f"{str(error)[:1].upper()}{str(error)[1:]}.") from None
    return tuple(claims)


def _search_claim(pattern: str, root: ResolvedPath, facts: Facts) -> PathClaim:
    """The claim of a Glob pattern or a Grep filter: the start of it that is literal may lead elsewhere."""
    if len(pattern) > MAX_PATTERN:
        raise UnresolvablePathError("the pattern is too long")
    special = min((place for place, character in enumerate(pattern) if character in "{}\\*?["), default=len(pattern))
    literal = pattern[:special].rpartition("/")[0] + "/" if "/" in pattern[:special] else ""
    rest = pattern[len(literal) :]
    if any(character in rest for character in "{}\\"):
        # Alternatives and escapes: what it matches is not worked out, so it may match anything below.
        rest = "**"
    if ".." in rest.split("/"):
        raise UnresolvablePathError("the pattern goes up behind a wildcard")
    start = resolve(literal, facts, cwd=root.candidates[-1]) if literal.strip("/") or literal == "/" else root
    # A filter without a slash holds at every depth.
    claim = glob_claim(rest if "/" in pattern else f"**/{rest}", start, writes=False, deep=False)
    return replace(claim, filtered=rest != "**")
