"""What an E2B provider is told: the account, and the bounds of its plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Traffic(StrEnum):
    """How model requests leave a sandbox."""

    RELAY = "relay"
    """Through the relay to the host's gateway: metered and bounded there, with no way to the network."""
    DIRECT = "direct"
    """Straight to the model API; E2B puts the key in on the way. Nothing of ours stands between."""


@dataclass(frozen=True)
class E2BOptions:
    """Account and bounds. Durations in seconds.

    Args:
        api_key: the account's key.
        home_id: names this Rookery home in the metadata of its sandboxes, so that its janitor finds them and no other.
        api_url: control plane; None: the cloud's.
        sandbox_url: base URL of all sandboxes; None: the cloud's.
        domain: another domain than the cloud's.
        template: name or id of the template.
        timeout_s: how long a sandbox runs on when nobody extends its life; it is paused then.
        concurrency: sandboxes that run at once; the plan's.
        creations_per_s: the plan's.
        rest_s: a sandbox without an agent is paused after so long without use.
        queue_s: longest wait for a place.
        traffic: how model requests leave.
        secret: name of the E2B secret that holds the model API's key, for direct traffic.
        model_host: host of the model API, for direct traffic.
    """

    api_key: str = field(repr=False)
    home_id: str
    api_url: str | None = None
    sandbox_url: str | None = None
    domain: str | None = None
    template: str = "rookery"
    timeout_s: int = 300
    concurrency: int = 20
    creations_per_s: float = 1.0
    rest_s: float = 60.0
    queue_s: float = 60.0
    traffic: Traffic = Traffic.RELAY
    secret: str | None = None
    model_host: str = "api.anthropic.com"
