"""What a session's policy lets those do that it spawns: how deep they may nest, and how many may work at once."""

from __future__ import annotations

from policies import Limits
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


def room_for_child(services: Services, parent: SessionRecord) -> int:
    """How many of a session's children may be at work, for the store to hold.

    Raises:
        RookeryError: ``session_ended``; ``policy_denied``: it may have no children, or is nested too deeply for any.
    """
    if parent.state.is_terminal:
        raise RookeryError(ErrorCode.SESSION_ENDED, "The session that would spawn this one has ended.")
    limits, settings = services.policy_of(parent).limits, services.settings
    depth = min(settings.max_depth, settings.max_depth if limits.depth is None else limits.depth)
    if len(parent.parent_policies or ()) >= depth:
        raise RookeryError(ErrorCode.POLICY_DENIED, f"Agents may be nested {depth} deep at most: do the work yourself.")
    return _children(services, limits)


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
    return _children(services, services.policy_of(parent).limits)


def _children(services: Services, limits: Limits) -> int:
    bound = services.settings.max_children
    return bound if limits.children is None else min(bound, limits.children)
