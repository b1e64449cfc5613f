"""The providers of one server by their name: a session keeps the kind of sandbox that it was spawned with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from server.errors import ErrorCode, RookeryError
from server.sandboxes.base import SandboxProvider


class Providers:
    """All kinds of sandboxes that this server makes.

    Args:
        default: the kind of a session that asks for none.
        made: the providers.
    """

    def __init__(self, default: SandboxProvider, *others: SandboxProvider) -> None:
        self.default = default
        self._made: Mapping[str, SandboxProvider] = {each.name: each for each in (*others, default)}

    def __iter__(self) -> Iterator[SandboxProvider]:
        return iter(self._made.values())

    def named(self, kind: str) -> SandboxProvider:
        """The provider of a kind.

        Raises:
            RookeryError: ``sandbox_unavailable``: this server has none. Never another one instead.
        """
        provider = self._made.get(kind)
        if provider is None:
            raise RookeryError(
                ErrorCode.SANDBOX_UNAVAILABLE,
                f"This server makes no {kind} sandboxes, only {' and '.join(sorted(self._made))}. "
                "E2B needs E2B_API_KEY in the server's environment.",
            )
        return provider
