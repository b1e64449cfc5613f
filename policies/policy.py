"""A policy: layers that combine by meet, and what follows from them for each place of enforcement."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property

from policies.catalogue import ALWAYS_ALLOWED, NEVER_OFFERED, OLD_NAMES, TOOLS, canonical_name, is_known
from policies.errors import PolicyError
from policies.hosts import Egress
from policies.layer import LAYER_NAMES, Layer, Limits
from policies.rules import Rule, ToolNames
from policies.types import Effect


@dataclass(frozen=True)
class Policy:
    """What an agent may do.

    Every layer is asked and the strictest answer holds, so a layer can only tighten what those before it say. A
    policy file is one layer; :func:`combine` puts several together.

    Args:
        name: how it is called, for people.
        layers: its layers; never empty.
    """

    name: str
    layers: tuple[Layer, ...]

    def __post_init__(self) -> None:
        if not self.layers:
            raise PolicyError("a policy needs at least one layer")

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all that decides: equal for policies that were compiled from equal texts in equal layers."""
        text = json.dumps([[layer.name, layer.source, layer.role] for layer in self.layers], separators=(",", ":"))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    @cached_property
    def limits(self) -> Limits:
        """The smallest of each limit."""
        found = Limits()
        for layer in self.layers:
            found = found.meet(layer.limits)
        return found

    @cached_property
    def egress(self) -> Egress:
        """What may leave the sandbox, for the egress proxy."""
        return Egress(tuple(layer.network for layer in self.layers))

    @cached_property
    def network(self) -> tuple[str, ...]:
        """Host patterns that every layer allows, sorted; empty means no network at all."""
        return self.egress.hosts

    @property
    def intercepts(self) -> bool:
        """Whether the egress proxy opens some of the connections, so that the sandbox must trust it."""
        return bool(self.network) and self.egress.looks_inside

    @cached_property
    def server_tools(self) -> frozenset[str]:
        """Tools of the Messages API that the gateway may let through: what the CLI's own WebSearch asks for."""
        return frozenset({"web_search"}) if self.could_allow("WebSearch") else frozenset()

    @cached_property
    def models(self) -> str:
        """The models that sessions may use, in words."""
        bounds = [" or ".join(layer.models) for layer in self.layers if layer.models]
        return " that are also ".join(dict.fromkeys(bounds)) or "any model"

    def permits_model(self, model: str) -> bool:
        """Whether every layer lets sessions use a model of this name."""
        return all(
            not layer.models or any(fnmatchcase(model, pattern) for pattern in layer.models) for layer in self.layers
        )

    def could_allow(self, tool: str) -> bool:
        """Whether some call of a tool could be allowed, or asked for: what can never be is not offered."""
        name = canonical_name(tool)
        if name in ALWAYS_ALLOWED:
            return True
        if not is_known(name) or name in NEVER_OFFERED:
            return False
        return all(layer.could_allow(name) for layer in self.layers)

    def offered_tools(self, asked: Sequence[str] | None = None) -> tuple[str, ...]:
        """The explicit tool list for the CLI, in a stable order.

        Args:
            asked: only these (as users name them: ``Task`` means ``Agent``); None means all that the policy has.
                Names that the policy could never allow are left out: see :meth:`refused_tools`.

        Returns:
            Built-in tools only; tools of MCP servers come with their servers. ``StructuredOutput`` is added by the
            CLI itself when a schema is asked for, ``ToolSearch`` only stands here when asked for by name.
        """
        wanted = None if asked is None else {canonical_name(name) for name in asked}
        return tuple(
            name
            for name in TOOLS
            if name not in OLD_NAMES
            and name != "StructuredOutput"
            and (name != "ToolSearch" if wanted is None else name in wanted)
            and self.could_allow(name)
        )

    def refused_tools(self, asked: Iterable[str]) -> tuple[str, ...]:
        """Those of the tools asked for that no call of this policy could ever use, in their order."""
        return tuple(name for name in asked if not self.could_allow(name) or canonical_name(name) in OLD_NAMES)

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles in which an agent may act under this policy, sorted."""
        return tuple(sorted({role for layer in self.layers if layer.role is None for role in layer.roles}))

    def acting_as(self, role: str) -> Policy:
        """This policy for an agent in a role. Layers in which a role is bound already keep theirs.

        Raises:
            PolicyError: no layer knows the role.
        """
        if role not in self.roles:
            known = ", ".join(self.roles) or "none: define it under roles"
            raise PolicyError(f"the policy {self.name} has no role {role[:60]!r}", remedy=f"its roles: {known}")
        bound = (replace(layer, role=role) if layer.roles and layer.role is None else layer for layer in self.layers)
        return replace(self, layers=tuple(bound))

    def restricted_to(self, tools: Iterable[str]) -> Policy:
        """This policy with one more layer ``session`` that allows these tools and no others."""
        return combine(profile=self, session=_only_tools(tuple(dict.fromkeys(map(canonical_name, tools)))))


def _only_tools(tools: tuple[str, ...]) -> Policy:
    """A layer that allows some tools altogether and leaves everything else about them to the layers above."""
    fault = [name for name in tools if not is_known(name)]
    if fault:
        raise PolicyError(f"there is no tool named {fault[0][:60]!r}", remedy=f"known tools: {', '.join(offerable())}")
    rule = Rule("session-tools", Effect.ALLOW, ToolNames(frozenset(tools)), because="asked for at the start")
    everything = Egress.everything()
    source = json.dumps(["tools", sorted(tools)])
    return Policy("tools", (Layer("session", "tools", (rule,), network=everything, source=source),))


def offerable() -> tuple[str, ...]:
    """Names of the built-in tools that a policy may allow and this CLI has."""
    return tuple(name for name in TOOLS if name not in NEVER_OFFERED | OLD_NAMES | ALWAYS_ALLOWED)


def combine(
    *,
    organisation: Policy | None = None,
    profile: Policy | None = None,
    parent: Policy | None = None,
    session: Policy | None = None,
) -> Policy:
    """The meet of up to four policies: the strictest decision, the smallest limits, the common network.

    An absent one changes nothing. ``parent`` is the effective policy of the session that spawns this one, so a child
    can never do what its parent may not.

    Raises:
        PolicyError: all are absent.
    """
    given = dict(zip(LAYER_NAMES, (organisation, profile, parent, session), strict=True))
    layers: dict[tuple[str, str, str | None], Layer] = {}
    names: list[str] = []
    for place, policy in given.items():
        if policy is None:
            continue
        names.append(policy.name)
        for layer in policy.layers:
            # Whoever combines knows best what a single file is; inside a combined policy the layers keep their names.
            label = place if len(policy.layers) == 1 else layer.name
            if place == "parent":
                label = f"parent {layer.name}" if not layer.name.startswith("parent") else layer.name
            # The same text twice adds nothing: a child of a child of… does not grow without bound.
            layers.setdefault((layer.policy, layer.source, layer.role), replace(layer, name=label))
    if not layers:
        raise PolicyError("no policy is given", remedy="name at least one")
    return Policy(session.name if session is not None else names[-1], tuple(layers.values()))
