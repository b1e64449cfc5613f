"""The end of a turn: from what the agent said and what the host knows to the row that the store keeps."""

from __future__ import annotations

from typing import Final

import anyio
from claude_agent_sdk import AssistantMessage, Message, ResultMessage

from server.errors import ErrorCode, RookeryError
from server.hooks import Stop, Subject
from server.inbox import OpenTurn
from server.models import SessionRecord, SessionState, StopReason, TurnOrigin, TurnRecord
from server.services import Services
from server.store import Heard, Store
from server.turns.conclusions import Circumstances, Conclusion, conclude, refused
from server.turns.tracker import TurnTracker

SETTLE_ATTEMPTS: Final = 4
"""Tries to write a turn's end when the store fails, before the janitor has to."""


def is_foreign_result(message: Message, turn: OpenTurn | None) -> bool:
    """Whether a result answers something else than the present prompt, as when both crossed on the way."""
    if not isinstance(message, ResultMessage):
        return False
    if turn is None:
        return True
    answered = message.user_message_uuids
    expects = turn.record.origin is TurnOrigin.PROMPT and not turn.resumed
    if expects and turn.leftover and not answered:
        return not message.is_error and not turn.stopped
    return expects and bool(answered) and turn.message_id not in (answered or ())


def is_refusal_of_ours(message: Message, turn: OpenTurn | None) -> bool:
    """Whether it is no more than the CLI's word on a model request that was refused because further calls wait."""
    return turn is not None and turn.holds_the_model and isinstance(message, AssistantMessage) and bool(message.error)


async def ended_record(
    services: Services,
    session: SessionRecord,
    turn: OpenTurn,
    tracker: TurnTracker,
    *,
    upstream: RookeryError | None,
    denials: int,
) -> TurnRecord:
    """The turn as it ended; its checkpoint is still to be taken.

    Args:
        upstream: the gateway's verdict on the turn's model requests, if its last one failed.
        denials: tool calls that were refused in it.
    """
    result = tracker.result
    ending = conclude(
        result,
        Circumstances(
            interrupted=turn.interrupted,
            timed_out=turn.timed_out,
            overspent=turn.overspent,
            out_of_turns=turn.out_of_turns,
            stopped_for_approval=turn.holds_the_model and turn.put_off is not None and turn.put_off.done,
            upstream=upstream,
            crash=turn.crash,
            schema_asked=session.output_schema is not None and turn.record.origin is TurnOrigin.PROMPT,
            timeout_s=turn.timeout_s,
        ),
    )
    text = tracker.text
    if result is not None and result.result and not result.is_error:
        text = result.result
    if ending.stop_reason is StopReason.END_TURN:
        refusal = await _refusal(services, session, text, ending)
        if refusal is not None:
            ending, text = refusal, ""
    return turn.record.model_copy(
        update={
            "stop_reason": ending.stop_reason,
            "error": ending.error,
            "structured_output": ending.structured_output,
            "text": text,
            "denials": denials,
            "sdk_cost_usd": result.total_cost_usd if result is not None else None,
            "ended_at": services.clock.now(),
        }
    )


async def _refusal(services: Services, session: SessionRecord, text: str, ending: Conclusion) -> Conclusion | None:
    """How the turn ends instead, if a hook of the user objects to its answer."""
    subject = Subject(session.id, session.principal, session.turn, session.labels)
    objection = await services.hooks.objection(Stop(subject, text, ending.structured_output))
    return None if objection is None else refused(objection.because)


async def write_end(store: Store, record: TurnRecord, *, to: SessionState, heard: Heard | None = None) -> SessionRecord:
    """One transaction for the turn and the state; tried again while the store is unavailable.

    Args:
        store: the store.
        record: the turn, ended.
        to: the session's state from now on.
        heard: how far the agent's output was taken, where another server could take the agent over.

    Raises:
        RookeryError: ``storage_unavailable``, after several tries.
    """
    for attempt in range(SETTLE_ATTEMPTS):
        try:
            return await store.end_turn(record, to=to, heard=heard)
        except RookeryError as error:
            if error.code is not ErrorCode.STORAGE_UNAVAILABLE or attempt == SETTLE_ATTEMPTS - 1:
                raise
            await anyio.sleep(0.25 * 2**attempt)
    raise AssertionError("unreachable")
