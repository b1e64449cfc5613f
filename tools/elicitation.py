"""Asks people about tool calls through the client that waits for them, where the client can.

Clients of 2025-11-25 are asked while the call goes on; clients of 2026-07-28 get the questions as the call's result
and repeat the call with the answers. The repeated call attaches to the sessions that the first one started or waited
for, which travel in its sealed state, so nothing is ever started twice. Where a client cannot ask, or nobody answers,
the outcome names the open questions, and list_approvals and answer_approval are the way.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from mcp.server.elicitation import AcceptedElicitation, DeclinedElicitation, render_elicitation_schema
from mcp.server.mcpserver import Context
from mcp_types import ElicitRequest, ElicitRequestFormParams, ElicitResult, InputRequiredResult
from pydantic import BaseModel, Field, ValidationError

from server.errors import ErrorCode, RookeryError
from server.models import PendingApproval
from tools.backend import Registry
from tools.cleaning import cleaned

log = logging.getLogger(__name__)

MAX_ROUNDS: Final = 8
"""Rounds of questions in one call of 2026-07-28; clients give up at ten."""

MODERN: Final = "2026-07-28"
"""The first protocol revision in which questions are a call's result."""


class Permission(BaseModel):
    """The form that a person fills in."""

    decision: Literal["allow", "deny"] = Field(description="Whether the agent may make this call")
    note: str = Field(default="", max_length=2_000, description="Words for the agent")


@dataclass(frozen=True)
class Attached:
    """What a repeated call goes on with: the state that its first round handed out.

    Args:
        turns: session id → the turn that is waited for.
        round: how many rounds of questions there were.
        left: questions that the person put aside, which are not asked again in this call.
    """

    turns: Mapping[str, int]
    round: int = 0
    left: frozenset[str] = frozenset()

    def sealed(self) -> str:
        """As it travels; the protocol's layer encrypts it and binds it to the call and its caller."""
        return json.dumps({"turns": dict(self.turns), "round": self.round, "left": sorted(self.left)})

    @classmethod
    def opened(cls, text: str) -> Attached:
        """Read what :meth:`sealed` wrote.

        Raises:
            RookeryError: ``invalid_argument``.
        """
        try:
            given = json.loads(text)
            turns = {str(session): int(turn) for session, turn in given["turns"].items()}
            return cls(turns, int(given["round"]), frozenset(map(str, given["left"])))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RookeryError(
                ErrorCode.INVALID_ARGUMENT, "The request state is not one of this server: call the tool afresh."
            ) from error


class QuestionsPending(Exception):  # noqa: N818 - no error: the way out of a call that must be repeated
    """The call's result is a round of questions."""

    def __init__(self, result: InputRequiredResult) -> None:
        super().__init__("input required")
        self.result = result


@dataclass
class Elicitation:
    """A client that can ask its user, during one call.

    Args:
        registry: takes the answers.
        principal: on whose behalf.
        attached: of a repeated call, what it goes on with.
        push: asks while the call goes on; None for clients that are asked by the call's result.
    """

    registry: Registry
    principal: str
    attached: Attached | None
    push: Callable[[str], Awaitable[tuple[str, Permission | None]]] | None
    left: set[str] = field(default_factory=set)
    """Questions that were put to the person in this call and are not put again."""

    async def take(self, responses: Mapping[str, Any] | None) -> None:
        """Take the answers that a repeated call brought.

        Raises:
            RookeryError: ``storage_unavailable``.
        """
        if self.attached is None:
            return
        self.left |= self.attached.left
        for approval_id, response in (responses or {}).items():
            if isinstance(response, ElicitResult):
                await self._answer(approval_id, response.action, _form(response))

    def new(self, approvals: Iterable[PendingApproval]) -> list[PendingApproval]:
        """The questions that have not been put to the person in this call."""
        return [approval for approval in approvals if approval.approval_id not in self.left]

    async def ask(self, approval: PendingApproval) -> None:
        """Ask about one call and wait for the answer; the caller bounds the wait. A failure leaves it open."""
        assert self.push is not None
        self.left.add(approval.approval_id)
        try:
            action, permission = await self.push(question(approval))
            await self._answer(approval.approval_id, action, permission)
        except Exception as error:  # whatever the client did, the question stays open for answer_approval
            log.info("a question to the client was not answered: %s", type(error).__name__)

    def return_questions(self, approvals: Iterable[PendingApproval], turns: Mapping[str, int]) -> None:
        """Make the questions the call's result, unless there were too many rounds already.

        Raises:
            QuestionsPending: always, but after :data:`MAX_ROUNDS`.
        """
        rounds = 0 if self.attached is None else self.attached.round
        asked = list(approvals)
        if not asked or rounds >= MAX_ROUNDS:
            return
        state = Attached(turns, rounds + 1, frozenset(self.left))
        raise QuestionsPending(
            InputRequiredResult(
                request_state=state.sealed(),
                input_requests={approval.approval_id: question_form(approval) for approval in asked},
            )
        )

    async def _answer(self, approval_id: str, action: str, permission: Permission | None) -> None:
        self.left.add(approval_id)
        if action == "decline":
            allow, note = False, ""
        elif action == "accept" and permission is not None:
            allow, note = permission.decision == "allow", permission.note
        else:
            return
        try:
            await self.registry.answer_approval(self.principal, approval_id, allow=allow, note=note)
        except RookeryError as error:
            if error.code is ErrorCode.STORAGE_UNAVAILABLE:
                raise
            # Answered elsewhere or expired meanwhile: the outcome tells what became of it.
            log.info("an answer to %s came too late: %s", approval_id, error.code.value)


def question(approval: PendingApproval) -> str:
    """What the person is asked. The call is the agent's text, so it stands behind what we say, and cannot hide."""
    return f"An agent asks for permission to make this call.\n{cleaned(approval.summary)}"


def question_form(approval: PendingApproval) -> ElicitRequest:
    """The question as a request to the client."""
    form = render_elicitation_schema(Permission)
    return ElicitRequest(params=ElicitRequestFormParams(message=question(approval), requested_schema=form))


def _form(response: ElicitResult) -> Permission | None:
    try:
        return Permission.model_validate(response.content) if response.content is not None else None
    except ValidationError:
        return None


def elicitation_of(context: Context[Any, Any] | None, registry: Registry, principal: str) -> Elicitation | None:
    """How this call's client can ask its user; None when it did not say that it can.

    Raises:
        RookeryError: ``invalid_argument``: the call brings a state that is not ours.
    """
    if context is None or context.protocol_version is None:
        return None
    declared = context.client_capabilities
    if declared is None or declared.elicitation is None:
        return None
    if context.protocol_version >= MODERN:
        attached = None if context.request_state is None else Attached.opened(context.request_state)
        return Elicitation(registry, principal, attached, None)

    async def push(message: str) -> tuple[str, Permission | None]:
        result = await context.elicit(message, Permission)
        match result:
            case AcceptedElicitation(data=permission):
                return "accept", permission
            case DeclinedElicitation():
                return "decline", None
            case _:
                return "cancel", None

    return Elicitation(registry, principal, None, push)
