"""What needs no rights is tried without any: these tests run others as an ordinary user."""

from __future__ import annotations

from tests.ordinary_user import ordinary_user

HOLDING = "tests/unit/sandboxes/test_stillness.py"
LOOKS = "tests/integration/test_looks.py"


def test_agents_are_held_still_by_an_ordinary_user_too() -> None:
    """The sandbox has the server's own uid then, and neither control groups nor rights over other processes help."""
    with ordinary_user() as user:
        user.test(HOLDING, LOOKS)
