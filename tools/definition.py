"""What a tool is: a function with checked arguments, a typed answer and a text for people.

The functions know nothing of the protocol. A :class:`ToolDefinition` binds one to its name, its schemas and its
hints; :class:`ToolServer` publishes the definitions and runs them, so that a bad argument and a failure answer in
the same form everywhere.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from mcp.server import MCPServer
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import NotificationOptions, Server
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult, InputRequiredResult, ResourceLink, TextContent, Tool, ToolAnnotations
from pydantic import BaseModel

from server.callers import Caller, Scope
from server.errors import ErrorCode, RookeryError
from server.models import Record
from tools.arguments import parse_arguments
from tools.backend import Backend, Registry
from tools.cleaning import cleaned, guarded, guarded_value
from tools.elicitation import Elicitation, QuestionsPending, elicitation_of
from tools.errors import as_rookery_error, failure
from tools.identity import caller_of, caller_of_request
from tools.schemas import input_schema, output_schema
from tools.subscriptions import Subscriptions
from tools.tasks import TasksExtension

Arguments = TypeVar("Arguments", bound=BaseModel)
Answer = TypeVar("Answer", bound=Record)


@dataclass(frozen=True)
class Call:
    """One call of a tool: on whose behalf, on what, and how to tell the caller that it goes on."""

    caller: Caller
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


class ToolServer(MCPServer[Any]):
    """An MCP server whose tools are :class:`ToolDefinition` s over one backend.

    It replaces the SDK's own handling of tools (which answers bad arguments in the validator's words and takes
    unknown ones in silence) at its two public methods.

    Args:
        definitions: the tools.
        backend: where the registry comes from.
        principal: whose sessions these are.
        max_wait_s: longest wait inside one call, in seconds.
        read_only: whether a call may change nothing, not even by asking the user or as a task.
        tasks: calls that go on as tasks; None: none do.
        subscriptions: who is told of changes; None: nobody is.
    """

    def __init__(
        self,
        definitions: Sequence[ToolDefinition[Any, Any]],
        backend: Backend,
        *,
        caller: Caller | None,
        max_wait_s: float,
        on_failure: Callable[[ErrorCode], None] | None = None,
        read_only: bool = False,
        tasks: TasksExtension | None = None,
        subscriptions: Subscriptions | None = None,
        **options: Any,
    ) -> None:
        if subscriptions is not None:
            options["lifespan"] = lambda _: subscriptions.watching()
        super().__init__(extensions=() if read_only or tasks is None else (tasks,), **options)
        self.tasks = tasks
        self.subscriptions = subscriptions
        self._read_only = read_only
        self._definitions = {definition.name: definition for definition in definitions}
        self.backend = backend
        self._caller = caller
        self._max_wait_s = max_wait_s
        self._on_failure = on_failure
        self._published: list[Tool] | None = None
        if subscriptions is None:
            return
        subscriptions.serve_on(self.protocol)
        # What the protocol's layer below offers of connections of the older era, it takes from its caller; nobody asks
        # us at that place, so the answer is put there once.
        self.protocol.create_initialization_options = partial(  # type: ignore[method-assign]
            self.protocol.create_initialization_options, NotificationOptions(resources_changed=True)
        )

    def caller(self, context: Context[Any, Any] | None) -> Caller:
        """On whose behalf a request is served.

        Raises:
            RookeryError: ``internal``: it should have carried an identity and does not.
        """
        return caller_of(context, self._caller)

    def allowed(self, context: ServerRequestContext[Any, Any], scope: Scope) -> str:
        """The principal on whose behalf a request of the protocol's layer is served, who must have a scope.

        Raises:
            RookeryError: ``policy_denied``; ``internal`` as :meth:`caller`.
        """
        caller = caller_of_request(context.request, self._caller)
        caller.require(scope)
        return caller.principal

    @property
    def protocol(self) -> Server[Any]:
        """The protocol's layer below. The SDK's public entries take neither streams nor handlers of one's own; this is
        its private name for it, used here alone."""
        return self._lowlevel_server

    @property
    def tool_names(self) -> frozenset[str]:
        """Names of the tools that are offered."""
        return frozenset(self._definitions)

    async def list_tools(self) -> list[Tool]:
        """All tools, always in the same order; those that extensions add come last."""
        if self._published is None:
            self._published = [definition.published() for definition in self._definitions.values()]
        return [*self._published, *await super().list_tools()]

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Any, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        """Run a tool. A failure is an answer (``is_error``), never an exception; so are questions to the user."""
        definition = self._definitions.get(name)
        if definition is None and self._tool_manager.get_tool(name) is not None:
            return await super().call_tool(name, arguments, context)
        try:
            if definition is None:
                known = ", ".join(self._definitions)
                raise RookeryError(ErrorCode.INVALID_ARGUMENT, f"There is no such tool; the tools are {known}.")
            caller = self.caller(context)
            caller.require(definition.needs)
            # Arguments first: a bad call is told so even while the registry starts, or could not.
            checked = parse_arguments(definition.arguments, arguments, tool=name)
            registry = await self.backend.registry()
            asks = caller.may(Scope.APPROVE) and not self._read_only
            elicitation = elicitation_of(context, registry, caller.principal) if asks else None
            if elicitation is not None and context is not None:
                await elicitation.take(context.input_responses)
            call = Call(
                caller=caller,
                registry=registry,
                max_wait_s=self._max_wait_s,
                report=_reporter(context),
                elicitation=elicitation,
            )
            return await definition.answer_to(call, checked)
        except QuestionsPending as pending:
            return pending.result
        except Exception as error:
            known_error = as_rookery_error(error, where=definition.name if definition else "unknown tool")
            if self._on_failure is not None:
                self._on_failure(known_error.code)
            return failure(known_error)


def _reporter(context: Context[Any, Any] | None) -> Callable[[float, str], Awaitable[None]] | None:
    if context is None:
        return None

    async def report(number: float, text: str) -> None:
        await context.report_progress(number, message=guarded(text))

    return report
