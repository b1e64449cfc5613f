"""From a name that the policy allows to a connection: resolved here, judged, and pinned (row X11)."""

from __future__ import annotations

import anyio
from anyio.abc import SocketStream

from server.egress.addresses import is_public
from server.egress.failures import EgressFailedError, EgressRefusedError
from server.egress.options import EgressOptions
from server.egress.targets import Target

MAX_ADDRESSES = 4
"""Tried one after the other."""


async def dial(target: Target, options: EgressOptions) -> SocketStream:
    """Connect to a target whose name was allowed.

    The name is looked up once, all its addresses are judged, and the connection goes to just those: what the name
    says a moment later does not matter.

    Raises:
        EgressRefusedError: one of its addresses is not public.
        EgressFailedError: there is no such name, or nobody answers.
    """
    if target.host in options.loopback:
        return await _connect("127.0.0.1", options.loopback[target.host], options.bounds.connect_s)
    for address in (await addresses_of(target, options))[:MAX_ADDRESSES]:
        try:
            return await _connect(address, target.port, options.bounds.connect_s)
        except EgressFailedError:
            continue
    raise EgressFailedError(f"{target} does not answer")


async def addresses_of(target: Target, options: EgressOptions) -> list[str]:
    """The addresses of a target, all public.

    Raises:
        EgressRefusedError: one of them is not.
        EgressFailedError: there is no such name.
    """
    try:
        with anyio.fail_after(options.bounds.lookup_s):
            found = await options.lookup(target.host, target.port)
    except (OSError, UnicodeError):
        found = []
    if not found:
        raise EgressFailedError(f"the name {target.host} cannot be resolved")
    if not all(is_public(address) for address in found):
        raise EgressRefusedError(f"{target.host} leads to an address that is not public")
    return found


async def _connect(address: str, port: int, timeout_s: float) -> SocketStream:
    try:
        with anyio.fail_after(timeout_s):
            return await anyio.connect_tcp(address, port)
    except OSError as error:
        raise EgressFailedError("nobody answers there") from error
