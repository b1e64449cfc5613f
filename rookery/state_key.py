"""The key that seals the state of calls which ask the user, kept in the home so that it outlives the process."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final

KEY_BYTES: Final = 32


def state_key(home: Path) -> bytes | None:
    """The home's key, made by the first process that needs it; None where the home cannot hold one."""
    path = home / "request-state.key"
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Written aside and linked into place: of several processes that start at once all take the first one's key.
        fresh = home / f".request-state.{secrets.token_hex(8)}"
        if not path.exists():
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(KEY_BYTES))
            with suppress(FileExistsError):
                os.link(fresh, path)
            fresh.unlink()
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as kept:
            key = kept.read(KEY_BYTES + 1)
    except OSError:
        return None
    return key if len(key) == KEY_BYTES else None
