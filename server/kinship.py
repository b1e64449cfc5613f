"""What a session's policy lets those do that it spawns: how deep they may nest, and how many may work at once."""

from __future__ import annotations

from server.errors import ErrorCode, RookeryError
from server.models import SessionRecord
from server.policy_book import lineage
from server.services import Services


def as_child(session: SessionRecord, parent: SessionRecord) -> SessionRecord:
    """A session's record as that of one spawned by ``parent``: beneath all layers that bind the parent."""
    return session.model_copy(
        update={
            "parent_id": parent.id,
            "root_id": parent.root_id,
            "parent_policies": lineage(parent),
            "token_id": parent.token_id,
        }
    )


def room_for_child(services: Services, parent: SessionRecord) -> int | None:
    """How many of a session's children may be at work, for the store to hold; None when its policy has no bound.

    Raises:
        RookeryError: ``session_ended``; ``policy_denied``: it may have no children, or is nested too deeply for any.
    """
    if parent.state.is_terminal:
        raise RookeryError(ErrorCode.SESSION_ENDED, "The session that would spawn this one has ended.")
    limits = services.policy_of(parent).limits
    if limits.depth is not None and len(parent.parent_policies or ()) >= limits.depth:
        raise RookeryError(
            ErrorCode.POLICY_DENIED, f"The policy lets agents nest {limits.depth} deep at most: do the work yourself."
        )
    return limits.children


async def room_beside_siblings(services: Services, session: SessionRecord) -> int | None:
    """How many children of this session's parent may be at work; None where nothing bounds it."""
    if session.parent_id is None or session.forked_from is not None:
        return None
    try:
        parent = await services.store.session_for_server(session.parent_id)
    except RookeryError as error:
        if error.code is ErrorCode.SESSION_NOT_FOUND:
            return None
        raise
    return services.policy_of(parent).limits.children
