"""The store: sessions, turns, events, transcripts, costs, approvals and checkpoints in one SQL database."""

from server.store.events import Heard
from server.store.store import Store, open_store

__all__ = ["Heard", "Store", "open_store"]
