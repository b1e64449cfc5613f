"""Two servers on one file, driven at random: the store follows the table of moves, step by step."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from server.errors import ErrorCode, RookeryError
from server.models import TRANSITIONS, EventKind, SessionState
from server.store import Store, open_store
from tests.unit.store.records import ALICE, a_turn, end_turn, some_text, started

either = st.sampled_from([0, 1])
any_state = st.sampled_from(list(SessionState))


class TwoServers(RuleBasedStateMachine):
    """The model is the state, the number of turns, those of them that are open, and the length of the log."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.directory = self.stack.enter_context(TemporaryDirectory())
        self.state = SessionState.STARTING
        self.turns = 1
        self.is_open = True
        self.events = 2
        self.requests: dict[str, int] = {}
        self.stores: tuple[Store, ...] = ()

    @initialize()
    def open(self) -> None:
        async def opened() -> None:
            url = f"sqlite:///{Path(self.directory) / 'rookery.db'}"
            self.stores = (
                await self.stack.enter_async_context(open_store(url)),
                await self.stack.enter_async_context(open_store(url)),
            )
            await started(self.stores[0], "s1")

        self.runner.run(opened())

    @rule(server=either, to=any_state, expect=st.none() | st.sets(any_state, max_size=3))
    def move(self, server: int, to: SessionState, expect: set[SessionState] | None) -> None:
        allowed = to in TRANSITIONS[self.state] and (expect is None or self.state in expect)
        if self._does(allowed, self.stores[server].move("s1", to, expect=expect)):
            self.state = to
            self.events += 1

    @rule(server=either, request_id=st.sampled_from(["a", "b", "c"]))
    def prompt(self, server: int, request_id: str) -> None:
        seen = self.requests.get(request_id)
        allowed = seen is not None or self.state is SessionState.IDLE
        attempt = self.stores[server].begin_turn("s1", a_turn("s1", request_id=request_id))
        if self._does(allowed, attempt) and seen is None:
            self.turns += 1
            self.requests[request_id] = self.turns
            self.state = SessionState.RUNNING
            self.is_open = True
            self.events += 2

    @rule(server=either)
    def end(self, server: int) -> None:
        allowed = self.is_open and SessionState.IDLE in TRANSITIONS[self.state]
        if self._does(allowed, end_turn(self.stores[server], "s1", self.turns)):
            self.state = SessionState.IDLE
            self.is_open = False
            self.events += 2

    @rule(server=either, count=st.integers(0, 3))
    def log(self, server: int, count: int) -> None:
        self.runner.run(self.stores[server].append_events("s1", self.turns, some_text(count)))
        self.events += count

    @invariant()
    def both_see_the_same(self) -> None:
        for store in self.stores:
            session = self.runner.run(store.session(ALICE, "s1"))
            events = self.runner.run(store.events("s1", limit=10_000))
            moves = [event.data["to"] for event in events if event.kind is EventKind.STATE]
            assert (session.state, session.turn) == (self.state, self.turns)
            assert [event.seq for event in events] == list(range(1, self.events + 1))
            assert moves[-1] == self.state

    def teardown(self) -> None:
        self.runner.run(self.stack.aclose())
        self.runner.close()

    def _does(self, allowed: bool, attempt: Awaitable[object]) -> bool:
        async def tried() -> bool:
            try:
                await attempt
            except RookeryError as error:
                terminal = self.state.is_terminal
                assert error.code is (ErrorCode.SESSION_ENDED if terminal else ErrorCode.SESSION_BUSY)
                return False
            return True

        done = self.runner.run(tried())
        assert done == allowed
        return done


TestTwoServers = TwoServers.TestCase
TestTwoServers.settings = settings(max_examples=20, stateful_step_count=15, deadline=None)
