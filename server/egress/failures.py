"""What a connection ends with when it is not let through."""

from __future__ import annotations

from typing import Final

NOT_ALLOWED: Final = "the policy does not allow it"


class EgressRefusedError(Exception):
    """A connection or request that is not let through. The text says why, in words fit for the agent."""

    status = 403
    """HTTP status of the answer."""


class EgressFailedError(EgressRefusedError):
    """Allowed, but the other side could not be reached."""

    status = 502


class MalformedRequestError(EgressRefusedError):
    """Not a request that a proxy takes."""

    status = 400


class TrafficLimitError(EgressRefusedError):
    """The agent has moved as many bytes as it may."""
