"""Hooks as a user would write them, for the tests to name in ROOKERY_HOOKS."""

from __future__ import annotations

import time

import anyio

from server.hooks import Answer, Ask, Deny, PostToolUse, PreToolUse, Stop, UserPromptSubmit


def no_touch(event: PreToolUse) -> Answer:
    return Deny("the hook says no") if "touch" in str(event.input.get("command")) else None


async def ask_first(event: PreToolUse) -> Answer:
    return Ask("the hook asks")


def raises(event: object) -> Answer:
    raise RuntimeError("boom")


def junk(event: object) -> object:
    return {"decision": "allow"}


def slow(event: object) -> Answer:
    time.sleep(3)
    return None


async def slow_async(event: object) -> Answer:
    await anyio.sleep(30)
    return None


def tampers(event: PreToolUse) -> Answer:
    event.input["command"] = "touch other"  # type: ignore[index]  # what a hook must not be able to do
    return None


def no_leak(event: PostToolUse) -> Answer:
    return Deny("that must not be read") if "hidden-word" in str(event.response) else None


def no_secrets(event: UserPromptSubmit) -> Answer:
    return Deny("the prompt holds a secret") if "sesame" in event.prompt else None


def polite(event: Stop) -> Answer:
    return Deny("that is rude") if "rude" in event.text else None


not_callable = 7
