"""The real cloud in the double's place, for ``make test-e2b-live``.

The same tests run; those that need what only the double can do (make things go wrong, look inside) are skipped.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from tests.e2b_cloud.handle import E2BCloud

CHOSEN = "ROOKERY_TEST_E2B"
"""The variable that chooses: ``live``, or nothing for the double."""


def is_live() -> bool:
    """Whether this run is against the real cloud."""
    return os.environ.get(CHOSEN) == "live"


class LiveCloud(E2BCloud):
    """The account of ``E2B_API_KEY``. Costs money; every sandbox made since :meth:`reset` is killed at the next."""

    live = True

    def __init__(self) -> None:
        key = os.environ.get("E2B_API_KEY")
        if not key:
            pytest.fail(f"{CHOSEN}=live needs E2B_API_KEY")
        super().__init__(os.environ.get("E2B_API_URL"), os.environ.get("E2B_SANDBOX_URL"), "", key)
        self._before = self._listed()
        self.given_up = False

    @property
    def environment(self) -> dict[str, str]:
        """Nothing but the key: the SDK knows the rest."""
        return {"E2B_API_KEY": self.api_key}

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        self.given_up = True
        pytest.skip("only the double can do this")

    def reset(self) -> list[str]:
        """Kill all that came since the start; what it was, unless the test gave up half-way."""
        left = self.living()
        if left:
            asyncio.run(self._kill(left))
        given_up, self.given_up = self.given_up, False
        return [] if given_up else left

    def living(self) -> list[str]:
        """Those that came since the start."""
        return sorted(self._listed() - self._before)

    def _listed(self) -> set[str]:
        async def listed() -> set[str]:
            found: set[str] = set()
            pages = self.sdk().AsyncSandbox.list()
            while pages.has_next:
                found |= {one.sandbox_id for one in await pages.next_items()}
            return found

        return asyncio.run(listed())

    async def _kill(self, identities: list[str]) -> None:
        for identity in identities:
            await self.sdk().AsyncSandbox.kill(identity)
