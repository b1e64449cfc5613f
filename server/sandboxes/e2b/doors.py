"""Where connections go that programs in a sandbox make: to the gateway, and to the proxy of who is let out."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

import anyio

from server.sandboxes.base import Outlet
from server.sandboxes.e2b.channel import Destination, unix_destination


class Doors:
    """The two ways out of one sandbox, closed until :meth:`admit`.

    Args:
        gateway: the socket of the model gateway on this host.
    """

    def __init__(self, gateway: Path) -> None:
        self._gateway = gateway
        self._egress: Path | None = None
        self._admitted = anyio.Event()

    @property
    def destinations(self) -> Mapping[str, Destination]:
        """As a channel takes them."""
        return {"gateway": self._to_gateway, "egress": self._to_egress}

    def admit(self) -> None:
        """Whoever answers connections from inside knows them: not so while an agent is being taken over."""
        self._admitted.set()

    def listen(self, outlet: Outlet | None) -> Callable[[], None]:
        """Let an outlet answer what programs inside ask of their proxy; what is given back ends that."""
        if outlet is None:
            return lambda: None
        path = self._gateway.with_name(f"e{secrets.token_hex(6)}.sock")
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(str(path))
            listener.listen(128)
            listener.setblocking(False)
        except OSError:
            listener.close()
            raise
        self._egress = path
        end = outlet.serve(listener)

        def close() -> None:
            end()
            path.unlink(missing_ok=True)
            if self._egress == path:
                self._egress = None

        return close

    async def _to_gateway(self) -> socket.socket:
        await self._admitted.wait()
        return await unix_destination(str(self._gateway))

    async def _to_egress(self) -> socket.socket | None:
        await self._admitted.wait()
        return None if self._egress is None else await unix_destination(str(self._egress))
