"""The sockets that HTTP is served on."""

from __future__ import annotations

import socket

from rookery.web.addresses import Address


def test_an_answer_in_two_writes_does_not_wait_for_an_acknowledgement() -> None:
    with (
        Address.parse("127.0.0.1:0").listening() as listener,
        socket.create_connection(listener.getsockname()),
    ):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
