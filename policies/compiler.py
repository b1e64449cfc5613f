"""From a validated document to a layer: every name, pattern and value checked, with line and remedy for each fault."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from policies import schema
from policies.calls import parse_call
from policies.catalogue import MCP_TOOL, NEVER_OFFERED, TOOLS, FieldKind, canonical_name
from policies.decompose import parts_of
from policies.errors import PolicyError
from policies.globs import PathPattern, PatternError, parse_pattern
from policies.hosts import HostError, HostRule, HostRules, parse_host_pattern
from policies.layer import Layer, Limits, tool_names
from policies.matching import Matcher
from policies.parts import PartKind, RefusedError
from policies.policy import offerable
from policies.rewrite import RewriteError, checked_settings
from policies.rules import Rule, ToolNames, UsedTool, When, token_forms
from policies.source import Lines
from policies.types import Effect, Facts, ToolRequest

_PATHS: Final = frozenset({FieldKind.READ_PATH, FieldKind.WRITE_PATH, FieldKind.FILE_GLOB, FieldKind.COMMAND})
_HOSTS: Final = frozenset({FieldKind.URL, FieldKind.HOSTS, FieldKind.COMMAND})


class Compiler:
    """Compiles one document.

    Args:
        document: the validated document.
        lines: where its values stand.
        file: what to call it in errors.
        base: the compiled preset that it extends.
    """

    def __init__(self, document: schema.PolicyModel, lines: Lines, file: str, base: Layer | None) -> None:
        self._document = document
        self._lines = lines
        self._file = file
        self._base = base

    def compile(self, name: str) -> Layer:
        """The layer, its examples checked.

        Raises:
            PolicyError: for the first fault in the order of the file.
        """
        document, base = self._document, self._base
        roles = dict(base.roles) if base is not None else {}
        for role, model in (document.roles or {}).items():
            roles[role] = self._tools(model.tools, ("roles", role, "tools"), granting=True)
        rules = [] if base is None else list(base.rules)
        seen = {rule.id: rule for rule in rules}
        allowed: list[HostRule] = [] if base is None else list(base.network.allowed)
        denied: list[HostRule] = [] if base is None else list(base.network.denied)
        for place, rule_model in enumerate(document.rules):
            at = ("rules", place)
            if rule_model.id in seen:
                other = seen[rule_model.id]
                where = f"line {other.line}" if other.file == self._file else f"the preset {other.file}"
                raise self._fault(f"the rule id {rule_model.id!r} stands already in {where}", (*at, "id"), "rename it")
            rule = self._rule(rule_model, at, roles)
            seen[rule.id] = rule
            if rule_model.network is not None:
                target = allowed if rule_model.effect == "allow" else denied
                target.extend(
                    self._host(host, (*at, "network", index)) for index, host in enumerate(rule_model.network)
                )
            else:
                self._examples(rule, rule_model, at)
                rules.append(rule)
        source = document.model_dump_json(exclude_defaults=True)
        return Layer(
            name="profile",
            policy=name,
            rules=tuple(rules),
            default=Effect(document.default or (base.default if base is not None else "deny")),
            unprovable=Effect(document.unprovable or (base.unprovable if base is not None else "deny")),
            limits=self._limits(),
            roles=roles,
            models=document.models or (base.models if base is not None else ()),
            network=HostRules(tuple(allowed), tuple(denied)),
            examples=(*(base.examples if base is not None else ()), *self._example_texts()),
            source=source if base is None else f"{base.source}\n{source}",
        )

    def _fault(self, message: str, at: tuple[str | int, ...], remedy: str | None = None) -> PolicyError:
        return PolicyError(message, file=self._file, line=self._lines.of(at), remedy=remedy)

    def _example_texts(self) -> list[str]:
        found: list[str] = []
        for rule in self._document.rules:
            if rule.examples is not None:
                found.extend((*(rule.examples.match or ()), *(rule.examples.not_match or ())))
        return found

    def _limits(self) -> Limits:
        own = self._document.limits
        found = self._base.limits if self._base is not None else Limits()
        if own is None:
            return found
        given = {name: value for name, value in own.model_dump().items() if value is not None}
        return replace(found, **given)

    def _tools(self, names: Iterable[str], at: tuple[str | int, ...], *, granting: bool) -> ToolNames:
        names = tuple(names)
        for place, name in enumerate(names):
            here = (*at, place)
            plain = canonical_name(name)
            if plain in TOOLS:
                if granting and plain in NEVER_OFFERED:
                    raise self._fault(
                        f"the tool {name} cannot be allowed", here, "it starts turns or waits behind Rookery's back"
                    )
                continue
            if name == "*":
                if granting:
                    raise self._fault("* cannot be allowed", here, "list the tools")
                continue
            server, _, tool = name.removeprefix("mcp__").partition("__")
            if not name.startswith("mcp__") or not server or (name.count("__") > 1 and not tool):
                close = difflib.get_close_matches(name, [*offerable(), "Task"], n=1, cutoff=0.6)
                raise self._fault(
                    f"there is no tool named {name[:60]!r}",
                    here,
                    f"did you mean {close[0]}?"
                    if close
                    else f"known tools: {', '.join(offerable())}, mcp__server__tool",
                )
            if any(character in server for character in "*?["):
                raise self._fault(
                    f"the server in {name[:60]!r} is a pattern", here, "name the server, as in mcp__git__*"
                )
            plain_tool = tool.replace("*", "x").replace("?", "x") or "x"
            if MCP_TOOL.fullmatch(f"mcp__{server}__{plain_tool}") is None:
                raise self._fault(f"{name[:60]!r} is not the name of an MCP tool", here, "write mcp__server__tool")
        return tool_names(names)

    def _patterns(self, texts: Iterable[str] | None, at: tuple[str | int, ...]) -> tuple[PathPattern, ...]:
        found = []
        for place, text in enumerate(texts or ()):
            try:
                found.append(parse_pattern(text))
            except PatternError as error:
                raise self._fault(error.fault, (*at, place), error.remedy) from None
        return tuple(found)

    def _rule(self, model: schema.RuleModel, at: tuple[str | int, ...], roles: dict[str, ToolNames]) -> Rule:
        granting = model.effect in ("allow", "ask")
        tools = self._tools(model.tools or (), (*at, "tools"), granting=granting)
        for place, role in enumerate(model.roles or ()):
            if role not in roles:
                raise self._fault(f"there is no role {role!r}", (*at, "roles", place), "define it under roles")
        when = self._when(model.when, tools, (*at, "when"))
        try:
            named = sorted(tools.exact)
            if model.set is not None and (tools.every or tools.globs):
                raise RewriteError("a rewrite names its tools one by one")
            settings = checked_settings(named, model.set) if model.set is not None else ()
        except RewriteError as error:
            raise self._fault(str(error), (*at, "set")) from None
        return Rule(
            id=model.id,
            effect=None if model.effect == "rewrite" else Effect(model.effect),
            tools=tools,
            roles=frozenset(model.roles or ()),
            when=when,
            because=model.because or "",
            rewrite=settings,
            ask_ttl_s=None if model.ask is None else model.ask.ttl,
            advisory=model.advisory,
            file=self._file,
            line=self._lines.of((*at, "id")),
        )

    def _when(self, model: schema.WhenModel | None, tools: ToolNames, at: tuple[str | int, ...]) -> When:
        if model is None:
            return When()
        try:
            argv = token_forms(model.argv) if model.argv is not None else ()
        except ValueError as error:
            raise self._fault(str(error), (*at, "argv")) from None
        domains = []
        for place, text in enumerate(model.domain or ()):
            try:
                domains.append(parse_host_pattern(text))
            except HostError as error:
                raise self._fault(str(error), (*at, "domain", place)) from None
        state: list[UsedTool] = []
        if model.after is not None:
            used = self._tools((model.after.tool,), (*at, "after", "tool"), granting=False)
            state.append(UsedTool(used, model.after.within))
        if model.count is not None:
            used = self._tools((model.count.tool,), (*at, "count", "tool"), granting=False)
            state.append(UsedTool(used, model.count.within, model.count.at_least))
        when = When(
            argv=argv,
            exact=model.exact,
            paths=self._patterns(model.path, (*at, "path")),
            access=model.access,
            cwd=self._patterns(model.cwd, (*at, "cwd")),
            env=model.env or (),
            domains=tuple(domains),
            input=tuple(
                (name, value if isinstance(value, tuple) else (value,)) for name, value in (model.input or {}).items()
            ),
            state=tuple(state),
        )
        self._check_conditions(when, tools, at)
        return when

    def _check_conditions(self, when: When, tools: ToolNames, at: tuple[str | int, ...]) -> None:
        """A condition that can never hold for a tool makes the rule dead for it: said at once."""
        others = sorted(tools.exact - {"Bash"}) or (["*"] if tools.every or tools.globs else [])
        for name, given in (("argv", when.argv), ("cwd", when.cwd), ("env", when.env)):
            if given and (not tools.covers("Bash") or (others and not tools.every)):
                raise self._fault(
                    f"{name} holds for Bash only, so the rule can never match {others[0] if others else 'its tools'}",
                    (*at, name),
                    "put the other tools into a rule of their own",
                )
        for name, given, kinds in (("path", when.paths, _PATHS), ("domain", when.domains, _HOSTS)):
            for tool in sorted(tools.exact) if given else ():
                fields = TOOLS[tool].fields.values() if tool in TOOLS else ()
                if kinds.isdisjoint(fields):
                    raise self._fault(
                        f"{tool} has no {name}, so the rule can never match it", (*at, name), "leave the tool out"
                    )
        for field_name, _ in when.input:
            for tool in sorted(tools.exact):
                if tool in TOOLS and field_name not in TOOLS[tool].fields:
                    known = ", ".join(TOOLS[tool].fields) or "none"
                    raise self._fault(
                        f"{tool} has no input field {field_name!r}", (*at, "input", field_name), f"its fields: {known}"
                    )

    def _host(self, model: schema.HostModel, at: tuple[str | int, ...]) -> HostRule:
        try:
            host = parse_host_pattern(model.host)
        except HostError as error:
            raise self._fault(str(error), (*at, "host")) from None
        if (model.methods or model.paths) and not model.intercept:
            raise self._fault(
                "methods and paths cannot be seen in an encrypted connection",
                (*at, "methods" if model.methods else "paths"),
                "add intercept: true, or leave them out",
            )
        for place, path in enumerate(model.paths or ()):
            if not path.startswith("/") or "*" in path:
                raise self._fault(f"{path!r} is not a path prefix", (*at, "paths", place), "write it like /simple/")
        methods = tuple(method.upper() for method in model.methods or ())
        return HostRule(host, model.ports, methods, model.paths or (), model.intercept)

    def _examples(self, rule: Rule, model: schema.RuleModel, at: tuple[str | int, ...]) -> None:
        if model.examples is None:
            return
        role = sorted(rule.roles)[0] if rule.roles else None
        for key, expected in (("match", True), ("not_match", False)):
            for place, text in enumerate(getattr(model.examples, key) or ()):
                here = (*at, "examples", key, place)
                try:
                    request = parse_call(text, role)
                except ValueError as error:
                    raise self._fault(str(error), here) from None
                if matches(rule, request, Facts()) is not expected:
                    verb = "does not match" if expected else "matches"
                    raise self._fault(
                        f"the rule {rule.id!r} {verb} its example {text[:80]!r}", here, "mend the rule or the example"
                    )


def matches(rule: Rule, request: ToolRequest, facts: Facts) -> bool:
    """Whether a rule by itself matches a call, its conditions on state taken as met.

    An allow matches when it covers every part of the call; any other rule when it matches one part.
    """
    stateless = replace(rule, when=replace(rule.when, state=()))
    matcher = Matcher(facts, request.role)
    try:
        parts = parts_of(request, facts)
    except RefusedError:
        # No rule is asked about a call that cannot be read; it is denied.
        return rule.effect is Effect.DENY
    if stateless.proves and rule.effect is Effect.ALLOW:
        judged = [part for part in parts if part.needs_allow or (part.kind is PartKind.TOOL and part.called != "Bash")]
        return bool(judged) and all(matcher.proves(stateless, part) for part in judged)
    return any(matcher.possible(stateless, part) for part in parts)
