"""Sandboxes in E2B's cloud. Nothing here imports E2B's SDK before it is used."""

from server.sandboxes.e2b.options import E2BOptions, Traffic
from server.sandboxes.e2b.provider import E2BProvider, open_e2b

__all__ = ["E2BOptions", "E2BProvider", "Traffic", "open_e2b"]
