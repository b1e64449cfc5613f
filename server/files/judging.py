"""Pure judgements that look symbolic links up, where that takes time: made again until nothing is unknown."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, TypeVar

from policies.types import LinkLookup
from server.errors import ErrorCode, RookeryError

T = TypeVar("T")

ROUNDS: Final = 64
"""How often links are looked up for one judgement: more than a path may have (40, as in the kernel)."""

MAX_PATHS: Final = 4_096
"""Most paths whose links are looked up at once."""


async def judged(
    judge: Callable[[LinkLookup], T], look_up: Callable[[Sequence[str]], Awaitable[Mapping[str, str | None]]]
) -> T:
    """What a judgement says that knows of every link that it asks for.

    Args:
        judge: may be called several times; a path that is not known yet reads as no link. Between its last call and
            the return nothing else runs.
        look_up: absolute paths → the text of the link at each, or None.

    Raises:
        RookeryError: ``invalid_argument``: too many paths or links; what ``look_up`` raises.
    """
    known: dict[str, str | None] = {}
    for _ in range(ROUNDS):
        asked: set[str] = set()

        def look(path: str, asked: set[str] = asked) -> str | None:
            if path not in known:
                asked.add(path)
            return known.get(path)

        answer = judge(look)
        if not asked:
            return answer
        if len(asked) > MAX_PATHS:
            raise RookeryError(ErrorCode.INVALID_ARGUMENT, "The call names too many paths: split it.")
        found = await look_up(sorted(asked))
        known.update((path, found.get(path)) for path in asked)
    raise RookeryError(
        ErrorCode.INVALID_ARGUMENT, "The call leads through too many symbolic links: name the files themselves."
    )
