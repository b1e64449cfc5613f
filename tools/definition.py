"""What a tool is: a function with checked arguments, a typed answer and a text for people.

The functions know nothing of the protocol. A :class:`ToolDefinition` binds one to its name, its schemas and its
hints; :class:`~tools.tool_server.ToolServer` publishes the definitions and runs them.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from mcp_types import CallToolResult, ResourceLink, TextContent, Tool, ToolAnnotations
from pydantic import BaseModel

from server.callers import Caller, Scope
from server.models import Record
from tools.backend import Registry
from tools.cleaning import cleaned, guarded, guarded_value
from tools.elicitation import Elicitation
from tools.offer import Offer
from tools.schemas import input_schema, output_schema

Arguments = TypeVar("Arguments", bound=BaseModel)
Answer = TypeVar("Answer", bound=Record)


@dataclass(frozen=True)
class Call:
    """One call of a tool: on whose behalf, on what, and how to tell the caller that it goes on."""

    caller: Caller
    offer: Offer
    """What else the caller can call."""
    registry: Registry
    max_wait_s: float
    """Longest that the call may wait for an agent."""
    report: Callable[[float, str], Awaitable[None]] | None
    """Sends a progress number and text; the protocol drops it when the caller did not ask for progress.
    None outside a request."""
    elicitation: Elicitation | None = None
    """Asks the caller's user about tool calls; None for a client that cannot."""

    @property
    def principal(self) -> str:
        """Whose sessions the call may see."""
        return self.caller.principal

    @property
    def attached(self) -> Mapping[str, int] | None:
        """Of a call that was repeated with answers: the sessions that its first round started or waited for, each
        with the turn that is waited for. Nothing may be started again then."""
        known = None if self.elicitation is None else self.elicitation.attached
        return None if known is None else known.turns


@dataclass(frozen=True)
class ToolDefinition(Generic[Arguments, Answer]):
    """A tool as it is published. Its description is the docstring of ``run``.

    Args:
        title: name for people.
        run: does the work.
        arguments: what it takes.
        answer: what it gives, as structured content.
        render: the short text beside it, for people and for clients that show no structured content.
        link: where the whole of an answer is that gives only a part; None for those that are whole.
        read_only: whether it changes nothing.
        destructive: whether it may remove or overwrite something.
        idempotent: whether repeating it changes nothing more.
        open_world: whether it sets an agent to work, which talks to a model and costs money.
        scope: what the caller must be allowed; by default what reading or running needs.
    """

    name: str
    title: str
    run: Callable[[Call, Arguments], Awaitable[Answer]]
    arguments: type[Arguments]
    answer: type[Answer]
    render: Callable[[Answer], str]
    link: Callable[[Answer], ResourceLink | None] | None = None
    read_only: bool = False
    destructive: bool = False
    idempotent: bool = False
    open_world: bool = False
    scope: Scope | None = None
    exact: bool = False
    """Whether the structured answer holds contents of files, which a program needs byte for byte."""

    @property
    def needs(self) -> Scope:
        """The scope that a caller must have."""
        return self.scope or (Scope.READ if self.read_only else Scope.RUN)

    def published(self) -> Tool:
        """The tool as ``tools/list`` shows it."""
        return Tool(
            name=self.name,
            title=self.title,
            description=inspect.getdoc(self.run),
            input_schema=input_schema(self.arguments),
            output_schema=output_schema(self.answer),
            annotations=ToolAnnotations(
                title=self.title,
                read_only_hint=self.read_only,
                destructive_hint=self.destructive,
                idempotent_hint=self.idempotent or self.read_only,
                open_world_hint=self.open_world,
            ),
        )

    async def answer_to(self, call: Call, arguments: Arguments) -> CallToolResult:
        """Run it and shape its answer."""
        answer = await self.run(call, arguments)
        link = None if self.link is None else self.link(answer)
        structured = answer.model_dump(mode="json")
        text = self.render(answer)
        return CallToolResult(
            content=[
                TextContent(type="text", text=cleaned(text) if self.exact else guarded(text)),
                *(() if link is None else (link,)),
            ],
            structured_content=structured if self.exact else guarded_value(structured),
        )
