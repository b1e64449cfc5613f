"""The store: sessions, turns, events, transcripts, costs, approvals and checkpoints in one SQL database."""

from server.store.store import Store, open_store

__all__ = ["Store", "open_store"]
