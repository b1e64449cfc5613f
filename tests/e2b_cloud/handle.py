"""The handle that tests have on the double."""

from __future__ import annotations

import json
import urllib.request
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from e2b import E2B

    from tests.e2b_cloud.faults import Kind, Origin


class E2BCloud:
    """A running double."""

    live = False
    """Whether it is the real cloud, see :mod:`tests.e2b_cloud.live`."""

    def __init__(self, api_url: str | None, sandbox_url: str | None, administration_url: str, api_key: str) -> None:
        self.api_url = api_url
        """Origin of the control plane: ``E2B_API_URL``."""
        self.sandbox_url = sandbox_url
        """Origin of all sandboxes: ``E2B_SANDBOX_URL``."""
        self.api_key = api_key
        self.other_api_key = api_key.replace("d0", "d1")
        """Of another account."""
        self._administration_url = administration_url

    def sdk(self, api_key: str | None = None, **options: Any) -> E2B:
        """E2B's SDK, pointed here."""
        from e2b import E2B

        return E2B(api_key=api_key or self.api_key, api_url=self.api_url, sandbox_url=self.sandbox_url, **options)

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make the SDK, and Rookery, use it."""
        assert self.api_url is not None
        assert self.sandbox_url is not None
        return {
            "E2B_API_URL": self.api_url,
            "E2B_SANDBOX_URL": self.sandbox_url,
            "E2B_API_KEY": self.api_key,
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._administration_url + path, data, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=120) as answer:
            content = answer.read()
        return json.loads(content) if content else None

    @property
    def state(self) -> dict[str, Any]:
        """All that it knows: sandboxes, ended, templates, requests, faults, lost."""
        found: dict[str, Any] = self._call("GET", "/state")
        return found

    @property
    def sandboxes(self) -> list[dict[str, Any]]:
        """All living sandboxes, running and paused, with their metadata, network, commands and tree."""
        found: list[dict[str, Any]] = self.state["sandboxes"]
        return found

    def living(self) -> list[str]:
        """The names of all living sandboxes."""
        return [str(one["sandboxID"]) for one in self.sandboxes]

    def sandbox(self, identity: str) -> dict[str, Any]:
        """One of them."""
        return next(one for one in self.sandboxes if one["sandboxID"] == identity)

    @property
    def requests(self) -> list[str]:
        """Every request since the last reset: ``origin METHOD /path``."""
        found: list[str] = self.state["requests"]
        return found

    def fault(self, origin: Origin, match: str, kind: Kind, **options: Any) -> None:
        """Make something go wrong; see :class:`tests.e2b_cloud.faults.Fault`."""
        self._call("POST", "/faults", {"origin": origin, "match": match, "kind": kind, **options})

    def struck(self) -> list[int]:
        """How many requests each fault struck."""
        return [fault["struck"] for fault in self.state["faults"]]

    def switch(self, **switches: Any) -> None:
        """Set ``half_restored``, ``wedged_subscribers`` or ``silent_pause``."""
        self._call("POST", "/switches", switches)

    def plan(self, **limits: Any) -> None:
        """Set the plan's ``concurrent``, ``per_second``, ``longest_s`` (of one stretch from a start to a pause)."""
        self._call("POST", "/plan", limits)

    def clear_faults(self) -> None:
        """Nothing goes wrong any more."""
        self._call("DELETE", "/faults")

    def kill(self, identity: str) -> None:
        """A sandbox dies."""
        self._call("POST", f"/kill/{identity}")

    def pause(self, identity: str) -> None:
        """A sandbox is paused as if its time were over."""
        self._call("POST", f"/pause/{identity}")

    def upstream(self, host: str, url: str) -> None:
        """A host of the network, as sandboxes see it, is there."""
        self._call("POST", "/upstream", {host: url})

    def drop_streams(self) -> None:
        """All open streams break off without an end."""
        self._call("POST", "/drop-streams")

    def expire_commands(self) -> None:
        """The time of all running commands is over, as if each had been started with a timeout."""
        self._call("POST", "/expire-commands")

    def reset(self) -> list[str]:
        """End everything; the sandboxes that still lived."""
        living: list[str] = self._call("POST", "/reset")
        return living
