"""What to call next, in words that a model follows: of the tools that its caller has, and of no others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from server.models import Outcome, SessionState
from server.views import RewindReport, SessionView
from tools.offer import Offer

_LOOKS: Final = ("read_transcript", "list_files", "get_costs")
"""What shows the work of a session, also of one that has ended."""


def guided(outcome: Outcome, offer: Offer, *, before: str = "") -> Outcome:
    """An outcome as it is told to a caller: with what to call next, and with remedies that it has.

    Args:
        before: what is said ahead of ``next``.
    """
    error = outcome.error
    if error is not None:
        error = error.model_copy(update={"message": offer.worded(error.message)})
    return outcome.model_copy(update={"next": (before + after_turn(outcome, offer)).rstrip(), "error": error})


def guided_view(view: SessionView, offer: Offer) -> SessionView:
    """All about a session as it is told to a caller."""
    return view.model_copy(update={"outcome": guided(view.outcome, offer)})


def after_turn(outcome: Outcome, offer: Offer) -> str:
    """What to call after an outcome; empty where nothing can be called."""
    given = f'session_id="{outcome.session_id}"'
    match outcome.state:
        case _ if outcome.pending_approvals:
            return _decide(outcome, offer)
        case SessionState.STARTING | SessionState.RUNNING | SessionState.AWAITING_APPROVAL:
            wait = waiting(offer, outcome.session_id)
            return "The agent is at work." if wait is None else f"The agent is at work. Call {wait} again."
        case SessionState.IDLE:
            go_on = offer.first("continue_session", "reply")
            steps = [f"{go_on}({given}, prompt=…) to go on"] if go_on else []
            steps += [f"end_session({given}) when done"] if "end_session" in offer else []
            return f"Call {', or '.join(steps)}." if steps else _look(given, offer)
        case SessionState.ENDED:
            return _joined("The session has ended.", _look(given, offer), _anew(offer))
        case SessionState.FAILED:
            return _joined("The session failed and cannot be continued.", _anew(offer))


def after_waiting(outcomes: Sequence[Outcome], working: Sequence[str], offer: Offer) -> str:
    """What to call after a wait for several sessions."""
    if len(outcomes) == 1:
        return after_turn(outcomes[0], offer)
    if working:
        return f"{len(working)} still working: call {waiting(offer, *working)}."
    following = ", then continue or end the sessions" if "continue_session" in offer else ""
    return f"None of them works any more: read the outcomes{following}."


def after_forking(working: Sequence[str], offer: Offer) -> str:
    """What to call after sessions were forked."""
    wait = waiting(offer, *working) if working else None
    if wait is not None:
        return f"Call {wait}."
    go_on, end = offer.first("continue_session", "reply"), offer.first("end_session")
    steps = [f"{go_on} goes on with a fork"] if go_on else []
    steps += [f"{end} ends one"] if end else []
    return f"Read the outcomes; {', '.join(steps)}." if steps else "Read the outcomes."


def after_rewinding(report: RewindReport, offer: Offer) -> str:
    """What to call after a rewind, or after a look at what one would do."""
    given = f'session_id="{report.session_id}"'
    if report.dry_run:
        return f'Call rewind_files({given}, checkpoint_id="{report.checkpoint_id}", dry_run=false) to do it.'
    go_on = offer.first("continue_session", "reply")
    undo = f'rewind_files({given}, checkpoint_id="{report.undo_checkpoint_id}") to undo'
    return f"Call {undo}." if go_on is None else f"Call {go_on}({given}, prompt=…), or {undo}."


def after_listing_approvals(count: int, offer: Offer) -> str:
    """What to call after a look at the questions that wait."""
    if not count:
        return "Nothing waits for a decision."
    if "answer_approval" in offer:
        return "Call answer_approval(approval_id=…, decision=…) for each."
    return "Somebody who may decide must answer them."


def waiting(offer: Offer, *session_ids: str) -> str | None:
    """The call that waits for sessions, or looks at one; None where there is none."""
    match offer.first("wait_for_sessions", "reply", "get_session"):
        case "wait_for_sessions":
            listed = ", ".join(f'"{one}"' for one in session_ids)
            return f"wait_for_sessions(session_ids=[{listed}])"
        case str(tool):
            return f'{tool}(session_id="{session_ids[0]}")'
        case None:
            return None


def _decide(outcome: Outcome, offer: Offer) -> str:
    given = f'session_id="{outcome.session_id}"'
    if "answer_approval" in offer:
        look = f"list_approvals({given}) and " if "list_approvals" in offer else ""
        wait = offer.first("wait_for_sessions", "reply")
        return f"Call {look}answer_approval{f', then {wait}' if wait else ''}."
    if "reply" in offer and offer.approves:
        return f'The agent asks for permission. Call reply({given}, decision="allow") or "deny".'
    look = f" list_approvals({given}) shows what it asks." if "list_approvals" in offer else ""
    return f"The agent asks for permission, which somebody else must give.{look}"


def _look(given: str, offer: Offer) -> str:
    first, *others = [tool for tool in _LOOKS if tool in offer] or [""]
    if not first:
        return ""
    named = [f"{first}({given})", *others]
    listed = named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"
    return f"Look at its work with {listed}."


def _joined(*sentences: str) -> str:
    return " ".join(sentence for sentence in sentences if sentence)


def _anew(offer: Offer) -> str:
    start = offer.first("spawn_agent", "run_agent")
    return f"Call {start} for a new one." if start else ""
