"""The first words of a TLS client, read for the name that it asks for (RFC 8446 section 4.1.2, RFC 6066 section 3)."""

from __future__ import annotations

from typing import Final

from server.egress.failures import EgressRefusedError

MAX_HELLO: Final = 16 * 1024
"""Bytes of a ClientHello with its records; those of today's clients need 0.3 to 2 KiB."""

_RECORD_HANDSHAKE: Final = 22
_CLIENT_HELLO: Final = 1
_SERVER_NAME: Final = 0
_ENCRYPTED_HELLO: Final = 0xFE0D
_NOT_TLS: Final = "a tunnel may carry TLS only"


class _Reader:
    """Takes fields off a block of bytes; a field that is not there in full is refused."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        piece = self._data[self._at : self._at + count]
        if len(piece) < count:
            raise EgressRefusedError("the TLS greeting is malformed")
        self._at += count
        return piece

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def block(self, size: int) -> bytes:
        """A block after its length, which has ``size`` bytes."""
        return self.take(self.number(size))

    def __bool__(self) -> bool:
        return self._at < len(self._data)


def server_name(data: bytes) -> str | None:
    """The server name that a TLS client asks for, from what it has sent so far.

    Returns:
        The name as sent, in lower case; None when more must be read to know.

    Raises:
        EgressRefusedError: not TLS, malformed, too long, names no server, or hides the name that counts.
    """
    message = _hello(data)
    return None if message is None else _name_in(message)


def _hello(data: bytes) -> bytes | None:
    """The ClientHello's content, put together from its records; None when it is not all there."""
    content = b""
    at = 0
    while True:
        header = data[at : at + 5]
        if header[:1] not in (b"", bytes([_RECORD_HANDSHAKE])) or header[1:2] not in (b"", b"\x03"):
            raise EgressRefusedError(_NOT_TLS)
        content += data[at + 5 : at + 5 + int.from_bytes(header[3:5], "big")]
        if content[:1] not in (b"", bytes([_CLIENT_HELLO])):
            raise EgressRefusedError(_NOT_TLS)
        wanted = int.from_bytes(content[1:4], "big") if len(content) >= 4 else MAX_HELLO
        if len(content) >= 4 + wanted:
            return content[4 : 4 + wanted]
        if len(data) >= MAX_HELLO or (len(content) >= 4 and wanted > MAX_HELLO):
            raise EgressRefusedError("the TLS greeting is too long")
        length = int.from_bytes(header[3:5], "big")
        if len(header) < 5 or len(data) < at + 5 + length:
            return None
        if length == 0:
            raise EgressRefusedError("the TLS greeting is malformed")
        at += 5 + length


def _name_in(message: bytes) -> str:
    reader = _Reader(message)
    reader.take(2 + 32)
    reader.block(1)
    reader.block(2)
    reader.block(1)
    if not reader:
        raise EgressRefusedError("the TLS greeting names no server")
    extensions = _Reader(reader.block(2))
    names: list[str] = []
    while extensions:
        kind = extensions.number(2)
        body = extensions.block(2)
        if kind == _ENCRYPTED_HELLO:
            raise EgressRefusedError("the TLS greeting hides the server's name (ECH)")
        if kind == _SERVER_NAME:
            names += _server_names(body)
    if len(names) != 1:
        raise EgressRefusedError("the TLS greeting must name one server")
    return names[0]


def _server_names(body: bytes) -> list[str]:
    entries = _Reader(_Reader(body).block(2))
    names = []
    while entries:
        kind = entries.number(1)
        name = entries.block(2)
        if kind != 0 or not name.isascii():
            raise EgressRefusedError("the TLS greeting names its server in a strange way")
        names.append(name.decode("ascii").lower())
    return names
