"""The log's redaction: whatever road a secret takes into a line, it does not come out."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest
import structlog

from server.clock import SYSTEM_CLOCK
from server.secret_forms import SECRET_FORMS
from server.telemetry import REDACTED, configure_logging, redact
from tests import secrets

ANTHROPIC_KEY = "sk-ant-api03-AbCdEf_012345-xyz"
OUR_TOKEN = SYSTEM_CLOCK.secret()
BEARER = "Bearer abcDEF123.456_789-xyz=="

SECRETS = {
    "an Anthropic key": (ANTHROPIC_KEY, ANTHROPIC_KEY),
    "an OAuth token": ("sk-ant-oat01-ZZZ_9-a", "sk-ant-oat01-ZZZ_9-a"),
    "a bearer token": (f"authorization: {BEARER}", BEARER.removeprefix("Bearer ")),
    "one of our tokens": (f"grant {OUR_TOKEN} opened", OUR_TOKEN),
    "a password in a URL": ("postgresql://rookery:hunter22@db/x", "hunter22"),
    "an E2B key": ("E2B e2b_0123456789abcdef", "e2b_0123456789abcdef"),
    **{name: (f"seen {secret} there", secret) for name, secret in secrets.SECRETS.items()},
}


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What stderr would get."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logging("debug", stream=stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_in_the_text_of_an_event_is_redacted(name: str, log: io.StringIO) -> None:
    text, secret = SECRETS[name]
    structlog.get_logger("server.test").info(f"seen: {text}")
    assert "seen" in log.getvalue()
    assert REDACTED in log.getvalue()
    assert secret not in log.getvalue()


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_in_a_nested_field_is_redacted(name: str, log: io.StringIO) -> None:
    text, secret = SECRETS[name]
    structlog.get_logger("server.test").warning("request", headers={"x": [text, {"deep": (text,)}]}, raw=text.encode())
    assert secret not in log.getvalue()


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_in_an_exception_is_redacted(name: str, log: io.StringIO) -> None:
    text, secret = SECRETS[name]
    try:
        raise ValueError(text)
    except ValueError:
        structlog.get_logger("server.test").exception("failed")
    assert "ValueError" in log.getvalue()
    assert secret not in log.getvalue()


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_that_a_library_logs_is_redacted(name: str, log: io.StringIO) -> None:
    text, secret = SECRETS[name]
    logging.getLogger("somelibrary").warning("sent %s", text, extra={"header": text})
    assert "sent" in log.getvalue()
    assert secret not in log.getvalue()


@pytest.mark.parametrize("name", ["authorization", "x-api-key", "ANTHROPIC_API_KEY", "auth_token", "token", "password"])
def test_the_value_of_a_field_with_a_telling_name_is_redacted_whatever_it_looks_like(name: str) -> None:
    assert redact({name: "plain"}) == {name: REDACTED}


def test_every_form_of_a_secret_has_an_example_that_is_looked_for() -> None:
    assert {form.name for form in SECRET_FORMS} == secrets.SECRETS.keys()


def test_what_is_no_secret_stays_as_it_is() -> None:
    line = {
        "event": "turn ended",
        "session_id": SYSTEM_CLOCK.session_id(),
        "checkpoint": SYSTEM_CLOCK.identifier("chk"),
        "input_tokens": 12,
        "path": "/workspace/src/main.py",
        "url": "https://api.anthropic.com/v1/messages",
    }
    assert redact(line) == line


def test_a_line_is_one_line_whatever_the_caller_put_into_it(log: io.StringIO) -> None:
    structlog.get_logger("server.test").info("first\nlevel=error event=forged", value="a\nb")
    assert len(log.getvalue().strip().splitlines()) == 1
