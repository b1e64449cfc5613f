"""The store: one object over all themes, opened once by the composition root."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server.clock import SYSTEM_CLOCK, Clock
from server.store.approvals import Approvals
from server.store.budgets import Budgets
from server.store.census import Census
from server.store.checkpoints import Checkpoints
from server.store.costs import Costs
from server.store.database import open_database
from server.store.decisions import Decisions
from server.store.events import Events
from server.store.kinship import Kinship
from server.store.ledger import Ledger
from server.store.listing import Listing
from server.store.portraits import Portraits
from server.store.processes import Processes
from server.store.schema import ensure_schema
from server.store.sessions import Sessions
from server.store.tokens import Tokens
from server.store.transcripts import Transcripts
from server.store.turns import Turns


class Store(
    Sessions,
    Listing,
    Turns,
    Events,
    Ledger,
    Budgets,
    Costs,
    Transcripts,
    Processes,
    Approvals,
    Decisions,
    Checkpoints,
    Census,
    Tokens,
    Kinship,
    Portraits,
):
    """Everything that must outlive a process. Each method is one transaction: done in full, or not at all."""


@asynccontextmanager
async def open_store(url: str, *, clock: Clock = SYSTEM_CLOCK) -> AsyncIterator[Store]:
    """Open the store at a database URL, with its schema brought up to date.

    A SQLite file is created when missing, readable by this user alone, as is the directory that it lies in. Several
    processes may open one store, also at the same moment.

    Args:
        url: ``sqlite:///PATH`` or ``postgresql://USER@HOST/NAME``.
        clock: where times and identifiers come from.

    Raises:
        RookeryError: ``storage_unavailable``, also when the database was written by a newer Rookery.
    """
    async with open_database(url) as database:
        await ensure_schema(database)
        yield Store(database, clock)
