"""The model gateway: what the rest of the house uses of it."""

from server.gateway.failures import classify
from server.gateway.gateway import Gateway
from server.gateway.grants import Grant, UpstreamFailure
from server.gateway.prices import PriceBook, price_book
from server.gateway.recorder import LedgerWriter
from server.gateway.upstream import Upstream, anthropic_upstream

__all__ = [
    "Gateway",
    "Grant",
    "LedgerWriter",
    "PriceBook",
    "Upstream",
    "UpstreamFailure",
    "anthropic_upstream",
    "classify",
    "price_book",
]
