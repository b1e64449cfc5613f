"""Decides what the scripted model answers to a request."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import ValidationError

from server.gateway.scripted.conversation import Conversation, read_conversation
from server.gateway.scripted.demo import DEMO
from server.gateway.scripted.scenario import Echo, Message, Scenario, Step, messages_of, steps_in
from server.gateway.scripted.schema import sample

STRUCTURED_OUTPUT: Final = "StructuredOutput"
"""The CLI's tool for an answer in the form of ``output_schema``."""

MAX_ATTEMPTS_KEPT: Final = 4096


@dataclass(frozen=True)
class Block:
    """A content block of an answer."""

    kind: str
    """``text``, ``thinking`` or ``tool_use``."""
    text: str = ""
    """Its words; for a tool call the input as JSON."""
    tool: str = ""
    token_delay_s: float = 0.0
    delay_s: float = 0.0
    """Silence before it."""


@dataclass(frozen=True)
class Answer:
    """What to send for one request."""

    id: str
    model: str
    blocks: tuple[Block, ...]
    stop_reason: str
    usage: Mapping[str, Any]
    opening_delay_s: float = 0.0
    """Silence before the response begins."""
    closing_delay_s: float = 0.0
    """Silence after the last block."""
    failure: Step | None = None


@dataclass
class ScriptedModel:
    """Answers requests from scenarios: that in the prompt, the file's, the built-in demo, a friendly word.

    Args:
        scenario: played for prompts that carry none of their own.
    """

    scenario: Scenario | None = None
    _attempts: OrderedDict[bytes, int] = field(default_factory=OrderedDict)

    def answer(self, body: Mapping[str, Any]) -> Answer:
        """The answer to a request's body."""
        conversation = read_conversation(body)
        message = self._message(body, conversation)
        digest = hashlib.sha256(json.dumps(body.get("messages"), sort_keys=True).encode()).hexdigest()
        blocks: list[Block] = []
        opening = silence = 0.0
        for step in message.steps:
            if step.action == "delay_s":
                silence += step.delay_s or 0.0
                if not blocks:
                    opening, silence = opening + silence, 0.0
                continue
            blocks.append(_block(step, body, conversation, silence))
            silence = 0.0
        stop = message.stop_reason or ("tool_use" if message.calls_tools else "end_turn")
        usage = message.usage if message.usage is not None else _usage(body, blocks)
        model = str(body.get("model"))
        return Answer(f"msg_{digest[:24]}", model, tuple(blocks), stop, usage, opening, silence, message.failure)

    def _message(self, body: Mapping[str, Any], conversation: Conversation) -> Message:
        output_format = _output_format(body)
        if output_format is not None:
            return _said(json.dumps(sample(output_format, conversation.prompt)))
        if conversation.wants_summary:
            return _said("<summary>The scripted model was talked to. Nothing of it matters now.</summary>")
        try:
            steps = self._steps(conversation.prompt)
        except (ValueError, ValidationError) as error:
            return _said(f"The scripted model cannot read the scenario in the prompt: {error}")
        if steps is not None:
            return self._next(messages_of(steps), body, conversation)
        schema = _structured_schema(body)
        if schema is not None and not conversation.answers:
            value = sample(schema, conversation.prompt)
            return Message([Step(structured=value)])
        if conversation.answers:
            return _said("That is all I had to do.")
        return _said(
            "I am Rookery's scripted model: no real model was asked, and nothing was paid. "
            f"Your prompt reached me as: {conversation.prompt[:1000] or '(nothing)'}"
        )

    def _steps(self, prompt: str) -> tuple[Step, ...] | None:
        inline = steps_in(prompt)
        if inline is not None:
            return inline
        for scenario in (self.scenario, DEMO):
            steps = scenario.steps_for(prompt) if scenario is not None else None
            if steps is not None:
                return steps
        return None

    def _next(self, messages: list[Message], body: Mapping[str, Any], conversation: Conversation) -> Message:
        """The message whose turn it is: as many went before as the conversation holds answers."""
        before, broken = conversation.answers, conversation.broken
        for index, message in enumerate(messages):
            if message.failure is not None:
                if before == 0:
                    if self._fails(index, message.failure, body, broken):
                        return message
                    broken -= min(broken, message.failure.times or 0)
                continue
            if before == 0:
                return message
            before -= 1
        return _said("(The scenario is over.)")

    def _fails(self, index: int, failure: Step, body: Mapping[str, Any], broken: int) -> bool:
        """Whether a failing message fails this time. The one thing that a conversation does not show is how often
        it was sent as it is, so this is counted here, for each conversation of each session."""
        if failure.times is None or broken >= failure.times:
            return failure.times is None
        identity = json.dumps([index, body.get("messages"), body.get("metadata")], sort_keys=True)
        key = hashlib.sha256(identity.encode()).digest()
        attempts = self._attempts.pop(key, 0)
        self._attempts[key] = attempts + 1
        while len(self._attempts) > MAX_ATTEMPTS_KEPT:
            self._attempts.popitem(last=False)
        return broken + attempts < failure.times


def _said(text: str) -> Message:
    return Message([Step(text=text)])


def _block(step: Step, body: Mapping[str, Any], conversation: Conversation, delay_s: float) -> Block:
    match step.action:
        case "tool":
            return Block("tool_use", json.dumps(step.input), step.tool or "", delay_s=delay_s)
        case "structured":
            return Block("tool_use", json.dumps(step.structured), STRUCTURED_OUTPUT, delay_s=delay_s)
        case "thinking":
            return Block("thinking", step.thinking or "", token_delay_s=step.token_delay_s, delay_s=delay_s)
        case "reply_with":
            text = _echo(step.reply_with or Echo.PROMPT, body, conversation)
            return Block("text", text, token_delay_s=step.token_delay_s, delay_s=delay_s)
        case _:
            return Block("text", step.text or "", token_delay_s=step.token_delay_s, delay_s=delay_s)


def _echo(echo: Echo, body: Mapping[str, Any], conversation: Conversation) -> str:
    match echo:
        case Echo.LAST_TOOL_RESULT:
            return conversation.tool_results[-1] if conversation.tool_results else "(no tool result)"
        case Echo.TOOL_RESULTS:
            return "\n".join(conversation.tool_results)
        case Echo.PROMPT:
            return conversation.prompt
        case Echo.CONVERSATION:
            return "\n".join(f"{role}: {text}" for role, text in conversation.spoken)
        case Echo.TOOLS:
            tools = (tool for tool in body.get("tools") or () if isinstance(tool, Mapping))
            return " ".join(sorted(str(tool.get("name")) for tool in tools))
        case Echo.REMINDERS:
            return "\n".join(conversation.reminders)
        case Echo.SYSTEM:
            system = body.get("system") or ""
            blocks = system if isinstance(system, list) else [{"text": system}]
            return "\n".join(str(block.get("text", "")) for block in blocks if isinstance(block, Mapping))
        case Echo.MODEL:
            return str(body.get("model"))


def _output_format(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The JSON schema of an answer that must be JSON itself, as the CLI's side requests ask for."""
    config = body.get("output_config")
    asked = config.get("format") if isinstance(config, Mapping) else body.get("output_format")
    schema = asked.get("schema") if isinstance(asked, Mapping) else None
    return schema if isinstance(schema, Mapping) else None


def _structured_schema(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for tool in body.get("tools") or ():
        if isinstance(tool, Mapping) and tool.get("name") == STRUCTURED_OUTPUT:
            schema = tool.get("input_schema")
            return schema if isinstance(schema, Mapping) else None
    return None


def _usage(body: Mapping[str, Any], blocks: list[Block]) -> dict[str, int]:
    """Figures as a real model would have them: four characters to a token, what was sent before read from cache."""
    messages = body.get("messages") or []
    answered = max((index for index, one in enumerate(messages) if one.get("role") == "assistant"), default=-1)
    head = tokens_in([body.get("system"), body.get("tools")])
    old, new = tokens_in(messages[: answered + 1]), tokens_in(messages[answered + 1 :])
    cached = head + old if answered >= 0 else 0
    return {
        "input_tokens": 3,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": head + old + new - cached,
        "output_tokens": max(1, sum(len(block.text) for block in blocks) // 4),
    }


def tokens_in(value: object) -> int:
    """About how many tokens some JSON has."""
    return len(json.dumps(value, ensure_ascii=False)) // 4
