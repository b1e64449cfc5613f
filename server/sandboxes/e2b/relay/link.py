"""One direction-free rule for both ends: numbered frames, kept until the other end has them, sent again after a break.

A link outlives the connections that carry it. It lives as long as the same two programs talk: a host that was started
anew begins a new one, and what the old one had under way is over. Nothing here does input or output.
"""

from __future__ import annotations

from collections import deque

from server.sandboxes.e2b.relay.frames import Frame, ProtocolError

NUMBER = "q"
"""Header field: the number of a frame, from 1, without gaps. Frames without one are not sent again."""

RECEIVED = "a"
"""Header field: the number of the last frame that the sender of this one has got."""

ACKNOWLEDGE_BYTES = 1 << 20
"""An acknowledgement of its own is due when so many bytes came since the last one went out.

That is seldom: what a reader takes is credited after half as many bytes, and a credit acknowledges too. Each message
into the sandbox is a step of the SDK, of E2B and of the relay.
"""

_OVERHEAD = 64


class Link:
    """What one end knows."""

    def __init__(self) -> None:
        self.received = 0
        """Number of the last frame that came."""
        self._sent = 0
        self._kept: deque[Frame] = deque()
        self._unacknowledged = 0

    def numbered(self, frame: Frame) -> Frame:
        """A frame that is about to be sent, with its number; it is kept until it is acknowledged."""
        self._sent += 1
        frame.fields[NUMBER] = self._sent
        self._kept.append(frame)
        return frame

    def stamp(self, frame: Frame) -> Frame:
        """Say with a frame that goes out now what has come in."""
        frame.fields[RECEIVED] = self.received
        self._unacknowledged = 0
        return frame

    @property
    def owes_acknowledgement(self) -> bool:
        """Whether so much came in that it should be acknowledged by itself."""
        return self._unacknowledged >= ACKNOWLEDGE_BYTES

    def take(self, frame: Frame) -> bool:
        """Note a frame that came in; whether it is new. One that came twice is not.

        Raises:
            ProtocolError: one before it is missing, or it acknowledges what was never sent.
        """
        if RECEIVED in frame.fields:
            self.acknowledged(frame.number(RECEIVED))
        if NUMBER not in frame.fields:
            return True
        number = frame.number(NUMBER)
        if number <= self.received:
            return False
        if number != self.received + 1:
            raise ProtocolError(f"frame {number} came after {self.received}")
        self.received = number
        self._unacknowledged += len(frame.payload) + _OVERHEAD
        return True

    def acknowledged(self, number: int) -> None:
        """The other end has all frames up to this one.

        Raises:
            ProtocolError: there never was one.
        """
        if not 0 <= number <= self._sent:
            raise ProtocolError(f"frame {number} is acknowledged, {self._sent} were sent")
        while self._kept and self._kept[0].fields[NUMBER] <= number:
            self._kept.popleft()

    def again(self) -> list[Frame]:
        """What the other end has not got, to be sent over a new connection."""
        return list(self._kept)
