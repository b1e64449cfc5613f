"""Sandboxes on this Linux machine, made by bubblewrap (DESIGN section 5)."""

from server.sandboxes.bubblewrap.provider import BubblewrapProvider

__all__ = ["BubblewrapProvider"]
