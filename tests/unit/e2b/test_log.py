"""The relay's log of what the agent said: every position can be read until it is trimmed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from server.sandboxes.e2b.relay.records import SEGMENT, TAIL, Log


def test_small_pieces_are_read_together_and_any_position_gives_what_was_written_there(tmp_path: Path) -> None:
    log = Log(tmp_path / "log")
    dice = random.Random(7)
    written = bytearray()
    while len(written) < SEGMENT + 2 * TAIL:
        piece = dice.randbytes(dice.choice((1, 700, 8192, 20_000, 65_536)))
        log.append(piece)
        written += piece
    for _ in range(300):
        position = dice.choice((dice.randrange(len(written)), len(written) - dice.randrange(TAIL)))
        data = log.read(position, 65_536)
        assert data
        assert data == written[position : position + len(data)]
    # What is kept in memory comes in whole pieces, however small those were that were written.
    assert log.read(len(written) - 65_536, 65_536) == written[-65_536:]
    assert log.read(len(written), 65_536) == b""
    log.trim(len(written) - 10)
    assert log.read(len(written) - 10, 65_536) == written[-10:]
    with pytest.raises(ValueError, match="the log holds"):
        log.read(len(written) - 11, 1)
