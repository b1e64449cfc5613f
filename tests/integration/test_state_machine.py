"""Any order of calls and crashes leaves every session truthful: Hypothesis against a real house that is killed."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from server.errors import ErrorCode
from server.models import Outcome, SessionState, StopReason
from tests.house import bash
from tests.remote import RemoteHouse

QUICK, ENDLESS, FAILING = "quick", "endless", "failing"


@dataclass
class Believed:
    """What a session must say of itself."""

    state: SessionState
    turn: int
    stop_reason: StopReason | None
    text: str = ""


class Sessions(RuleBasedStateMachine):
    """Spawns, continues, forks, rewinds, interrupts, ends, and kills the server."""

    sessions = Bundle("sessions")
    kinds = st.sampled_from([QUICK, QUICK, ENDLESS, FAILING])

    def __init__(self) -> None:
        super().__init__()
        self._believed: dict[str, Believed] = {}
        self._words = 0
        self._home = Path(tempfile.mkdtemp(prefix="machine-"))
        self._home.chmod(0o755)
        self._house: RemoteHouse | None = None

    @property
    def house(self) -> RemoteHouse:
        assert self._house is not None
        return self._house

    @initialize()
    def open(self) -> None:
        self._house = RemoteHouse(self._home / "home")

    def _steps(self, kind: str) -> tuple[list[dict[str, Any]], Believed]:
        self._words += 1
        word = f"word {self._words}"
        match kind:
            case "quick":
                steps = [bash(f"echo {self._words} >> log"), {"text": word}]
                return steps, Believed(SessionState.IDLE, 0, StopReason.END_TURN, word)
            case "failing":
                return [{"error": 400}], Believed(SessionState.IDLE, 0, StopReason.ERROR, "")
            case _:
                return [bash("tail -f /dev/null")], Believed(SessionState.RUNNING, 0, None)

    def _begun(self, session_id: str, turn: int, expected: Believed) -> None:
        expected.turn = turn
        self._believed[session_id] = expected
        if expected.state is SessionState.IDLE:
            outcome = self.house.ask("settled", session_id)
            if expected.stop_reason is StopReason.ERROR:
                expected.text = outcome.text

    @rule(target=sessions, kind=kinds)
    def spawn(self, kind: str) -> str:
        steps, expected = self._steps(kind)
        session_id: str = self.house.ask("spawn", steps)
        self._begun(session_id, 1, expected)
        return session_id

    def _refusal(self, session_id: str) -> ErrorCode | None:
        match self._believed[session_id].state:
            case SessionState.ENDED:
                return ErrorCode.SESSION_ENDED
            case SessionState.RUNNING:
                return ErrorCode.SESSION_BUSY
            case _:
                return None

    @rule(session_id=sessions, kind=kinds)
    def go_on(self, session_id: str, kind: str) -> None:
        steps, expected = self._steps(kind)
        answer = self.house.ask("continue", session_id, steps)
        refusal = self._refusal(session_id)
        if refusal is not None:
            assert answer == refusal
            return
        assert answer == self._believed[session_id].turn + 1
        self._begun(session_id, answer, expected)

    @rule(target=sessions, session_id=sessions)
    def fork(self, session_id: str) -> str:
        answer = self.house.ask("fork", session_id)
        if answer in (ErrorCode.CHECKPOINT_NOT_FOUND, ErrorCode.SANDBOX_LOST):
            # A turn that was cut off before its first checkpoint, or a session that never got files.
            return session_id
        assert isinstance(answer, str)
        assert not isinstance(answer, ErrorCode), answer
        self._believed[answer] = Believed(SessionState.IDLE, 0, None)
        return answer

    @rule(session_id=sessions, conversation=st.booleans())
    def rewind(self, session_id: str, conversation: bool) -> None:
        outcome: Outcome = self.house.ask("outcome", session_id)
        if outcome.checkpoint_id is not None:
            answer = self.house.ask("rewind", session_id, outcome.checkpoint_id, conversation)
            assert answer == self._refusal(session_id)

    @rule(session_id=sessions)
    def interrupt(self, session_id: str) -> None:
        assert self.house.ask("interrupt", session_id) is None
        self._stopped(session_id)

    @rule(session_id=sessions)
    def end(self, session_id: str) -> None:
        assert self.house.ask("end", session_id) is None
        self._stopped(session_id)
        self._believed[session_id].state = SessionState.ENDED

    @rule()
    def crash(self) -> None:
        self.house.crash()
        for session_id in self._believed:
            self._stopped(session_id)

    def _stopped(self, session_id: str) -> None:
        believed = self._believed[session_id]
        if believed.state is SessionState.RUNNING:
            believed.state, believed.stop_reason = SessionState.IDLE, StopReason.INTERRUPTED

    @invariant()
    def every_session_is_truthful(self) -> None:
        if self._house is None:
            return
        for session_id, believed in self._believed.items():
            outcome: Outcome = self.house.ask("outcome", session_id)
            state = SessionState.RUNNING if outcome.state.is_busy else outcome.state
            said = Believed(state, outcome.turn, outcome.stop_reason, outcome.text)
            assert said == believed, session_id

    def teardown(self) -> None:
        if self._house is not None:
            self._house.kill()
        shutil.rmtree(self._home, ignore_errors=True)


def play(examples: int, steps: int) -> None:
    """Run the machine."""
    few = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=True,
    )
    run_state_machine_as_test(Sessions, settings=few)


def test_no_order_of_calls_and_crashes_makes_a_session_lie() -> None:
    play(2, 12)


@pytest.mark.slow
def test_no_long_order_of_calls_and_crashes_makes_a_session_lie() -> None:
    play(12, 30)
