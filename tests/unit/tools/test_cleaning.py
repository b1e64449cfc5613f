"""What agents say cannot steer the terminal of the one who reads it (row X13)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.cleaning import cleaned, cleaned_value

CLIPBOARD = "\x1b]52;c;ZXZpbA==\x07"


@pytest.mark.parametrize(
    "steering",
    ["\x1b[2J", CLIPBOARD, "\x9b31m", "a\rb", "\x00", "\x08", "\x7f", "\u202e", "\u2066", "\u200b", "\ufeff"],
)
def test_x13_what_steers_a_terminal_or_misleads_the_eye_is_taken_out(steering: str) -> None:
    """Row X13: ANSI, OSC 52, C1 controls, bidirectional overrides, characters of no width."""
    text = cleaned(f"before{steering}after")
    assert steering not in text
    assert text.startswith("before") and text.endswith("after")
    assert text.replace("\ufffd", "").isprintable()


@given(st.text(alphabet=st.characters(categories=["L", "N", "P", "S", "Zs"])) | st.sampled_from(["a\n\tb", "e\u0301"]))
def test_x13_ordinary_text_of_any_language_stays_as_it_is(text: str) -> None:
    """Row X13, the other side."""
    assert cleaned(text) == text


def test_x13_values_are_cleaned_all_through() -> None:
    """Row X13: in structured answers too."""
    value = {f"k{CLIPBOARD}": ["a\x1b[0m", {"b": "\u202eevil"}], "n": 1, "none": None}
    text = repr(cleaned_value(value))
    assert "\\x1b" not in text
    assert "\\u202e" not in text
    assert cleaned_value(value)["n"] == 1


def test_x13_endless_nesting_has_an_end() -> None:
    """Row X13: an answer is bounded whatever an agent made of it."""
    value: list[object] = []
    for _ in range(500):
        value = [value]
    assert cleaned_value(value) is not None
