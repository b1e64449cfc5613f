"""The way out of a sandbox: a proxy on the host that lets through what the session's policy allows."""

from server.egress.options import Bounds, EgressOptions
from server.egress.outlet import EgressOutlet
from server.egress.proxy import EgressProxy

__all__ = ["Bounds", "EgressOptions", "EgressOutlet", "EgressProxy"]
