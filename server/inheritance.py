"""What a session that an agent spawns has from its parent, and what its parent can give it."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from policies import Policy
from server.errors import ErrorCode, RookeryError
from server.models import NANO_USD, SessionRecord
from server.requests import SpawnRequest, WorkspaceSource
from server.services import Services

PARTS: Final = 4
"""A child that is spawned without a budget gets this part of what its parent has left, so that several can be."""


async def inherited(services: Services, parent: SessionRecord, request: SpawnRequest) -> SpawnRequest:
    """The request with what it leaves open filled in from the parent: policy, model, kind of sandbox, budget.

    Raises:
        RookeryError: ``policy_denied``: it asks for files that its parent could not get at itself;
            ``budget_exceeded``: the parent has nothing left; ``storage_unavailable``.
    """
    if request.workspace is not None:
        check_gift(request.workspace, services.policy_of(parent))
    budget = request.budget_usd if request.budget_usd is not None else await allowance(services, parent)
    return request.model_copy(
        update={
            "policy": request.policy or parent.policy,
            "model": request.model or parent.model,
            "sandbox": request.sandbox or parent.sandbox_kind,
            "budget_usd": budget,
        }
    )


async def allowance(services: Services, parent: SessionRecord) -> float:
    """The budget in dollars of a child that is given none by name.

    Raises:
        RookeryError: ``budget_exceeded``: the parent has nothing left; ``storage_unavailable``.
    """
    left = (await services.store.standing(parent.id)).remaining_nano_usd
    if left is None:
        return services.settings.default_budget_usd
    if left < PARTS:
        raise RookeryError(ErrorCode.BUDGET_EXCEEDED, "The session that spawns has nothing left of its budget to give.")
    return min(services.settings.default_budget_usd, left / PARTS / NANO_USD)


def check_gift(source: WorkspaceSource, policy: Policy) -> None:
    """Refuse a workspace by which an agent would reach what its own sandbox does not.

    Args:
        source: where the child's files are to come from.
        policy: what its parent works under.

    Raises:
        RookeryError: ``policy_denied``.
    """
    if source.path is not None:
        raise RookeryError(
            ErrorCode.POLICY_DENIED,
            "workspace: an agent can give no directory of the host; read what the child needs and give it as files.",
        )
    if source.git is not None:
        parts = urlsplit(source.git)
        host, path = parts.hostname or "", parts.path.rstrip("/")
        asked = (("GET", f"{path}/info/refs"), ("POST", f"{path}/git-upload-pack"))
        if not all(policy.egress.permits(host, method=method, path=one) for method, one in asked):
            raise RookeryError(
                ErrorCode.POLICY_DENIED,
                "workspace: your own network does not reach that host, so your children cannot have it cloned.",
            )
