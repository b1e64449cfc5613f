"""Tools that start, continue, watch and end sessions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from server.models import Outcome, Record, SessionState
from server.requests import IDENTIFIER, ListRequest, PromptRequest, Request, SpawnRequest
from server.views import Deletion, SessionPage, SessionView
from tools import rendering
from tools.definition import Call, ToolDefinition
from tools.next_steps import after_waiting, guided, guided_view
from tools.waiting import DEFAULT_WAIT_S, Waited, WaitSeconds, wait_until_settled

MAX_AWAITED: Final = 100
"""Sessions that one call may wait for."""

INTERRUPT_WAIT_S: Final = 15.0
"""An interrupt stops within seconds; past this the answer says that it is under way."""

SessionId = Annotated[
    str,
    Field(
        min_length=1,
        max_length=128,
        pattern=f"^{IDENTIFIER.pattern}$",
        description="id of the session, as an outcome gives it",
    ),
]


class SpawnArguments(SpawnRequest):
    wait_s: WaitSeconds = DEFAULT_WAIT_S


class ContinueArguments(PromptRequest):
    session_id: SessionId
    wait_s: WaitSeconds = DEFAULT_WAIT_S


class WaitArguments(Request):
    session_ids: Annotated[
        tuple[SessionId, ...],
        Field(min_length=1, max_length=MAX_AWAITED, description="ids of the sessions to wait for"),
    ]
    until: Literal["all", "any"] = Field(
        default="all", description="`all`: until none of them works any more; `any`: until one has stopped"
    )
    wait_s: WaitSeconds = DEFAULT_WAIT_S


class SessionArguments(Request):
    session_id: SessionId


class ListArguments(ListRequest):
    state: SessionState | None = Field(default=None, description="only sessions in this state")


class EndArguments(SessionArguments):
    delete: bool = Field(
        default=False,
        description="also delete its files, transcript and checkpoints now and for good; its costs stay in the ledger",
    )
    descendants: bool = Field(default=False, description="also end all that it spawned, and they in turn")


class Outcomes(Record):
    """What `wait_for_sessions` answers."""

    outcomes: tuple[Outcome, ...] = Field(description="one for each session, in the order asked for")
    working: tuple[str, ...] = Field(description="ids of the sessions that still work")
    next: str = Field(description="what to call next")


async def spawn_agent(call: Call, arguments: SpawnArguments) -> Outcome:
    """Start a new Claude agent in a sandbox of its own and give it a task.

    The agent has a file system, a shell and no network but what its policy names; it works in /workspace. Answers
    when the turn has ended, or after wait_s with state "starting" or "running": the agent then works on, and
    wait_for_sessions picks it up. Spawn several with wait_s=0 to let them work side by side. A failed turn is an
    outcome with `error`.
    """
    request = SpawnRequest.model_validate(arguments.model_dump(exclude={"wait_s"}))
    turns = call.attached or {await call.registry.spawn(call.principal, request, token_id=call.caller.token_id): 1}
    return await _outcome_after(call, turns, wait_s=arguments.wait_s)


async def continue_session(call: Call, arguments: ContinueArguments) -> Outcome:
    """Give a session its next prompt; the agent keeps its conversation and its files.

    Works on idle sessions, also after a restart of the server. A session that still works answers session_busy: wait
    for it, or interrupt it first.
    """
    request = PromptRequest.model_validate(arguments.model_dump(exclude={"wait_s", "session_id"}))
    session_id = arguments.session_id
    turns = call.attached or {session_id: await call.registry.prompt(call.principal, session_id, request)}
    return await _outcome_after(call, turns, wait_s=arguments.wait_s)


async def wait_for_sessions(call: Call, arguments: WaitArguments) -> Outcomes:
    """Wait until sessions have stopped working, all of them or the first, and answer with their outcomes.

    Returns after wait_s at the latest; call it again while `working` is not empty. Waiting costs nothing, and giving
    up the wait does not stop an agent.
    """
    waited = await wait_until_settled(
        call, dict.fromkeys(arguments.session_ids, 0), until=arguments.until, wait_s=arguments.wait_s
    )
    outcomes = tuple(guided(outcome, call.offer) for outcome in waited.outcomes)
    following = after_waiting(outcomes, waited.working, call.offer)
    return Outcomes(outcomes=outcomes, working=waited.working, next=_capped(waited) + following)


async def get_session(call: Call, arguments: SessionArguments) -> SessionView:
    """Show one session: its state, settings, checkpoints, and the outcome of its latest turn."""
    return guided_view(await call.registry.get(call.principal, arguments.session_id), call.offer)


async def list_sessions(call: Call, arguments: ListArguments) -> SessionPage:
    """List sessions, newest first, by state and labels if given; `cursor` continues a list."""
    request = ListRequest.model_validate(arguments.model_dump())
    return await call.registry.list(call.principal, request)


async def interrupt_session(call: Call, arguments: SessionArguments) -> Outcome:
    """Stop the agent's present turn; the session stays, with all its work, and can be continued.

    Does nothing to a session that is not working.
    """
    await call.registry.interrupt(call.principal, arguments.session_id)
    return await _outcome_after(call, {arguments.session_id: 0}, wait_s=INTERRUPT_WAIT_S, asks=False)


async def end_session(call: Call, arguments: EndArguments) -> Deletion:
    """End a session for good and free its sandbox.

    What it did can still be read until its retention is over, unless `delete` removes it now.
    """
    return await call.registry.end(
        call.principal, arguments.session_id, delete=arguments.delete, descendants=arguments.descendants
    )


async def _outcome_after(call: Call, turns: Mapping[str, int], *, wait_s: float, asks: bool = True) -> Outcome:
    waited = await wait_until_settled(call, turns, wait_s=wait_s, asks=asks)
    (outcome,) = waited.outcomes
    return guided(outcome, call.offer, before=_capped(waited))


def _capped(waited: Waited) -> str:
    if waited.capped_at_s is None:
        return ""
    return f"This server waits at most {waited.capped_at_s:g} s in one call. "


def _outcomes_text(answer: Outcomes) -> str:
    return rendering.outcomes_text(answer.outcomes, answer.next)


SPAWN_AGENT: Final = ToolDefinition(
    name="spawn_agent",
    title="Spawn an agent",
    run=spawn_agent,
    arguments=SpawnArguments,
    answer=Outcome,
    render=rendering.outcome_text,
    open_world=True,
)
CONTINUE_SESSION: Final = ToolDefinition(
    name="continue_session",
    title="Continue a session",
    run=continue_session,
    arguments=ContinueArguments,
    answer=Outcome,
    render=rendering.outcome_text,
    destructive=True,
    open_world=True,
)
WAIT_FOR_SESSIONS: Final = ToolDefinition(
    name="wait_for_sessions",
    title="Wait for sessions",
    run=wait_for_sessions,
    arguments=WaitArguments,
    answer=Outcomes,
    render=_outcomes_text,
    read_only=True,
)
GET_SESSION: Final = ToolDefinition(
    name="get_session",
    title="Show a session",
    run=get_session,
    arguments=SessionArguments,
    answer=SessionView,
    render=rendering.session_text,
    read_only=True,
)
LIST_SESSIONS: Final = ToolDefinition(
    name="list_sessions",
    title="List sessions",
    run=list_sessions,
    arguments=ListArguments,
    answer=SessionPage,
    render=rendering.page_text,
    read_only=True,
)
INTERRUPT_SESSION: Final = ToolDefinition(
    name="interrupt_session",
    title="Interrupt a session",
    run=interrupt_session,
    arguments=SessionArguments,
    answer=Outcome,
    render=rendering.outcome_text,
    idempotent=True,
)
END_SESSION: Final = ToolDefinition(
    name="end_session",
    title="End a session",
    run=end_session,
    arguments=EndArguments,
    answer=Deletion,
    render=rendering.deletion_text,
    destructive=True,
    idempotent=True,
)

TOOLS: Final[tuple[ToolDefinition[Any, Any], ...]] = (
    SPAWN_AGENT,
    CONTINUE_SESSION,
    WAIT_FOR_SESSIONS,
    GET_SESSION,
    LIST_SESSIONS,
    INTERRUPT_SESSION,
    END_SESSION,
)
