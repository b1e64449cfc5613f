"""Why a turn stopped: one closed stop reason and, where it failed, one closed error.

The CLI's own words are no evidence: a result with an API error comes as ``subtype=success`` (DESIGN section 4). What
counts is what the host itself did (interrupt, timeout), then the gateway's record, then the result's typed fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from claude_agent_sdk import ResultMessage

from server.agent.transport import AgentProtocolError
from server.errors import ErrorCode, RookeryError
from server.models import Failure, StopReason

ABORTED: Final = frozenset({"aborted_streaming", "aborted_tools"})
"""Terminal reasons of a turn that was interrupted."""


@dataclass(frozen=True)
class Circumstances:
    """What the host knows about a turn beside the agent's own result."""

    interrupted: bool = False
    timed_out: bool = False
    overspent: bool = False
    """Stopped because time in the sandbox has used the budget up."""
    out_of_turns: bool = False
    """Stopped because the policy allows the model no further turn by now."""
    stopped_for_approval: bool = False
    upstream: RookeryError | None = None
    """The gateway's verdict on the turn's model requests, if its last one failed."""
    crash: RookeryError | None = None
    """Why there is no result."""
    schema_asked: bool = False
    timeout_s: float = 0


@dataclass(frozen=True)
class Conclusion:
    """How a turn ended."""

    stop_reason: StopReason
    error: Failure | None = None
    structured_output: Any = None


def conclude(result: ResultMessage | None, known: Circumstances) -> Conclusion:
    """Say why a turn stopped.

    Args:
        result: the agent's result; None when it gave none.
        known: what the host knows.
    """
    completed = result is not None and not result.is_error and result.terminal_reason not in ABORTED
    if known.timed_out and not completed:
        message = f"The turn took longer than {known.timeout_s:g} s and was stopped. Its work so far is kept; continue."
        return _failed(RookeryError(ErrorCode.TIMEOUT, message), StopReason.TIMEOUT)
    if known.overspent and not completed:
        return _failed(_over_budget(), StopReason.BUDGET_EXCEEDED)
    if known.out_of_turns and not completed:
        return Conclusion(StopReason.MAX_TURNS)
    if known.interrupted and not completed:
        return Conclusion(StopReason.INTERRUPTED)
    if known.stopped_for_approval or (result is not None and result.terminal_reason == "tool_deferred"):
        return Conclusion(StopReason.AWAITING_APPROVAL)
    if result is None:
        return _failed(known.crash or _crashed())
    if result.terminal_reason in ABORTED:
        return Conclusion(StopReason.INTERRUPTED)
    if result.subtype == "error_max_turns" or result.terminal_reason == "max_turns":
        return Conclusion(StopReason.MAX_TURNS)
    if result.subtype == "error_max_budget_usd":
        return _failed(_over_budget(), StopReason.BUDGET_EXCEEDED)
    if result.is_error and known.upstream is not None:
        over = known.upstream.code is ErrorCode.BUDGET_EXCEEDED
        return _failed(known.upstream, StopReason.BUDGET_EXCEEDED if over else StopReason.ERROR)
    if result.stop_reason == "refusal":
        return Conclusion(StopReason.REFUSED)
    if known.schema_asked and result.structured_output is None:
        return _failed(
            RookeryError(
                ErrorCode.INTERNAL,
                "The agent did not answer in the form of output_schema. Continue the session and ask for it again, "
                "or make the schema simpler.",
                retryable=True,
            )
        )
    if result.is_error:
        return _failed(_unexplained(result))
    return Conclusion(StopReason.END_TURN, structured_output=result.structured_output)


def refused(because: str) -> Conclusion:
    """A turn whose answer a hook of the user withholds."""
    return _failed(
        RookeryError(ErrorCode.POLICY_DENIED, f"A hook of this server withholds the answer: {because}"),
        StopReason.REFUSED,
    )


def _failed(error: RookeryError, reason: StopReason = StopReason.ERROR) -> Conclusion:
    return Conclusion(reason, error=Failure.of(error))


def _crashed() -> RookeryError:
    return RookeryError(
        ErrorCode.AGENT_CRASHED,
        "The agent's process ended in the midst of the turn. Files and conversation up to there are kept; "
        "call continue_session to carry on.",
    )


def _over_budget() -> RookeryError:
    return RookeryError(
        ErrorCode.BUDGET_EXCEEDED,
        "The session's budget is spent. Call continue_session with a higher budget_usd (the new total) to go on.",
    )


def _unexplained(result: ResultMessage) -> RookeryError:
    detail = f"subtype={result.subtype} terminal_reason={result.terminal_reason} status={result.api_error_status}"
    return RookeryError(
        ErrorCode.AGENT_CRASHED,
        "The agent ended the turn with an error of its own. Call continue_session to carry on.",
        detail=detail,
    )


def start_failure(error: Exception) -> RookeryError:
    """Why an agent did not come up."""
    found = _typed(error)
    if found is not None:
        return found
    return RookeryError(
        ErrorCode.AGENT_CRASHED,
        "The agent did not start. Call continue_session to try again; `rookery doctor` checks this machine.",
        detail=f"{type(error).__name__}: {error}",
    )


def departure(error: Exception | None) -> RookeryError:
    """Why an agent that was up is gone."""
    found = None if error is None else _typed(error)
    if found is not None:
        return found
    message = (
        "The agent's output broke the protocol, so it was stopped."
        if isinstance(error, AgentProtocolError)
        else "The agent's process ended in the midst of the turn."
    )
    return RookeryError(
        ErrorCode.AGENT_CRASHED,
        f"{message} Files and conversation up to there are kept; call continue_session to carry on.",
        detail=f"{type(error).__name__}: {error}",
    )


def failure_of(error: Exception) -> RookeryError:
    """A failure of our own, as the turn that it ended shows it."""
    found = _typed(error)
    if found is not None:
        return found
    return RookeryError(
        ErrorCode.INTERNAL, "Rookery failed while the turn ran. Call continue_session to carry on.", detail=repr(error)
    )


def is_foreseen(error: BaseException) -> bool:
    """Whether an exception, with all that it holds, says itself why: an unreachable cloud, and no fault of our own."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_foreseen(inner) for inner in error.exceptions)
    return isinstance(error, RookeryError) and error.code is not ErrorCode.INTERNAL


def _typed(error: BaseException) -> RookeryError | None:
    """The typed error that an exception is or holds."""
    if isinstance(error, RookeryError):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next((found for inner in error.exceptions if (found := _typed(inner))), None)
    return None
