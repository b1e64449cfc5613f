"""Faults that a policy can have although every word of it is right: rules that never decide anything, and doubtful
ones. The first are refused at load, the second are what ``rookery policy lint`` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from policies.errors import PolicyError
from policies.globs import PathPattern
from policies.hosts import meet_hosts
from policies.layer import Layer
from policies.policy import Policy
from policies.rules import READ_TOOLS, Rule, ToolNames, When
from policies.shell import programs
from policies.types import Effect

MODEL_ALIASES: Final = frozenset({"default", "fable", "haiku", "opus", "opusplan", "sonnet"})
"""Short names of models that the CLI takes."""


class Severity(StrEnum):
    ERROR = "error"
    """The policy is refused."""
    WARNING = "warning"


@dataclass(frozen=True)
class Finding:
    """One fault.

    Args:
        severity: how bad it is.
        message: what is wrong.
        remedy: what to do about it.
        rule: the rule's id, if one is meant.
        file: the policy.
        line: where in it, counted from 1.
    """

    severity: Severity
    message: str
    remedy: str
    rule: str | None = None
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        place = "" if self.file is None else self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.severity.value}: {self.message}; {self.remedy}"


def lint(policy: Policy) -> tuple[Finding, ...]:
    """All findings about a policy that loads, in the order of its layers and lines."""
    found: list[Finding] = []
    for layer in policy.layers:
        found.extend(_dead_rules(layer))
        found.extend(_doubtful_rules(layer))
    return tuple(dict.fromkeys(found))


def check_layer(layer: Layer, file: str) -> None:
    """Refuse a layer with dead rules of its own.

    Raises:
        PolicyError: for the first of them.
    """
    for finding in _dead_rules(layer):
        if finding.file == file:
            raise PolicyError(finding.message, file=finding.file, line=finding.line, remedy=finding.remedy)


def _dead_rules(layer: Layer) -> list[Finding]:
    """Rules that another rule of the same layer always overrules or repeats."""
    found = []
    for place, rule in enumerate(layer.rules):
        for other_place, other in enumerate(layer.rules):
            if other is rule or other.effect is None or rule.effect is None or other.advisory > rule.advisory:
                continue
            stricter = other.effect.strictness > rule.effect.strictness
            repeats = other.effect is rule.effect and other_place < place
            if (stricter or repeats) and _covers(other, rule):
                verb = "overruled" if stricter else "repeated"
                found.append(
                    Finding(
                        Severity.ERROR,
                        f"the rule {rule.id!r} never decides anything: it is {verb} by {other.id!r}",
                        f"remove it, or narrow {other.id!r}" if stricter else "remove it",
                        rule.id,
                        rule.file,
                        rule.line,
                    )
                )
                break
    return found


def _covers(wide: Rule, narrow: Rule) -> bool:
    """Whether a rule matches at least whatever another does."""
    if wide.roles and not (narrow.roles and narrow.roles <= wide.roles):
        return False
    return _covers_tools(wide.tools, narrow.tools) and _covers_when(wide.when, narrow.when, denial=_is_denial(wide))


def _is_denial(rule: Rule) -> bool:
    return rule.effect is Effect.DENY


def _covers_tools(wide: ToolNames, narrow: ToolNames) -> bool:
    if wide.every:
        return True
    if narrow.every or not set(narrow.globs) <= set(wide.globs):
        return False
    return all(wide.covers(name) for name in narrow.exact)


def _covers_when(wide: When, narrow: When, *, denial: bool) -> bool:
    if wide.exact and not (narrow.exact and narrow.argv == wide.argv):
        return False
    if wide.argv and not denial:
        # Prefixes allow neither dangerous words, which take an exact rule, nor what a bare runner would run.
        if narrow.exact and not wide.exact:
            return False
        if any(len(form) == 1 and form[0] in programs.INTERPRETERS for form in wide.argv):
            return False
    if wide.argv and not (
        narrow.argv and all(any(form[: len(one)] == one for one in wide.argv) for form in narrow.argv)
    ):
        return False
    if wide.paths and not (
        narrow.paths and all(any(_covers_path(one, path, below=denial) for one in wide.paths) for path in narrow.paths)
    ):
        return False
    if wide.access is not None and wide.access != narrow.access:
        return False
    if wide.domains and not (
        narrow.domains and all(any(meet_hosts(one, host) == host for one in wide.domains) for host in narrow.domains)
    ):
        return False
    return all(
        not getattr(wide, name) or getattr(wide, name) == getattr(narrow, name)
        for name in ("cwd", "env", "input", "state")
    )


def _covers_path(wide: PathPattern, narrow: PathPattern, *, below: bool) -> bool:
    """Whether one pattern surely matches all that another does (never says so wrongly)."""
    if wide == narrow:
        return True
    if wide.components[:1] == ("**",) and wide.anchor == "/":
        if len(wide.components) == 1:
            return True
    elif wide.anchor != narrow.anchor:
        return False
    *stem, last = wide.components or ("",)
    if last != "**" and below:
        stem, last = list(wide.components), "**"
    plain = not any(character in part for part in stem for character in "*?[")
    return last == "**" and plain and narrow.components[: len(stem)] == tuple(stem) and wide.anchor == narrow.anchor


def _doubtful_rules(layer: Layer) -> list[Finding]:
    found: list[Finding] = []

    def warn(rule: Rule, message: str, remedy: str) -> None:
        text = f"the rule {rule.id!r} {message}"
        found.append(Finding(Severity.WARNING, text, remedy, rule.id, rule.file, rule.line))

    found += [
        Finding(
            Severity.WARNING,
            f"the model {alias!r} is a short name, but the gateway is asked for full ones",
            "write full names" if alias in ("default", "opusplan") else f"write claude-{alias}-*",
            file=layer.policy,
        )
        for alias in sorted(MODEL_ALIASES.intersection(layer.models))
    ]
    blanket = [rule for rule in layer.rules if rule.effect is Effect.ALLOW and _is_blanket(rule)]
    for rule in layer.rules:
        if not rule.because:
            warn(rule, "gives no reason", "add because:, it is shown to the agent")
        if rule.effect is Effect.ALLOW:
            for form in rule.when.argv:
                name = form[0].casefold()
                runs_others = name in programs.INTERPRETERS or name in programs.WRAPPERS
                if not rule.when.exact and len(form) == 1 and runs_others:
                    warn(rule, f"allows {name}, which runs other programs", "name what it runs, or use exact: true")
                    break
            if "WebFetch" in rule.tools.exact and not layer.network.allowed:
                warn(rule, "allows WebFetch, but the network rules let nothing out", "add a network rule for its hosts")
        if rule.effect is Effect.DENY:
            if rule.when.domains and rule.tools.covers("Bash"):
                warn(rule, "looks for hosts in shell commands, where they are easily hidden", "use network rules")
            if (
                rule.when.paths
                and not READ_TOOLS.isdisjoint(rule.tools.exact)
                and not rule.tools.covers("Bash")
                and blanket
            ):
                warn(rule, f"does not speak of Bash, which {blanket[0].id!r} allows", "add Bash to its tools")
            if rule.advisory and rule.tools.covers("Bash"):
                warn(rule, "is advisory: a script can evade it", "rely on the sandbox for what must hold")
    return found


def _is_blanket(rule: Rule) -> bool:
    return rule.tools.covers("Bash") and not rule.when.on_call
