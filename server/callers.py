"""Who calls, and what they may do: the identity that a transport found, handed down to every look-up."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from server.errors import ErrorCode, RookeryError

LOCAL_PRINCIPAL: Final = "local"
"""Whose sessions they are when the transport carries no identity: stdio, a socket of this user, the loopback."""


class Scope(StrEnum):
    """What a credential lets its holder do."""

    READ = "agents:read"
    RUN = "agents:run"
    APPROVE = "agents:approve"
    ADMIN = "admin"
    """All of the others, and what concerns the server as a whole."""


@dataclass(frozen=True)
class Caller:
    """One who calls.

    Args:
        principal: whose sessions they may see; every look-up is by it.
        scopes: what they may do.
        token_id: the API token that they showed, on whose budget their spawns go; None for all other ways in.
    """

    principal: str
    scopes: frozenset[Scope] = frozenset(Scope)
    token_id: str | None = None

    def may(self, scope: Scope) -> bool:
        """Whether they may do what needs this scope."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    def require(self, scope: Scope) -> None:
        """Refuse what the credential does not allow.

        Raises:
            RookeryError: ``policy_denied``.
        """
        if not self.may(scope):
            raise RookeryError(
                ErrorCode.POLICY_DENIED,
                f"This needs the scope {scope.value}, which your credential does not have: use one that has it.",
            )


LOCAL: Final = Caller(LOCAL_PRINCIPAL)
"""The user of this machine, who may do everything with what is theirs."""
