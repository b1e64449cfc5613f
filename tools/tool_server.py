"""The MCP server of our tools: publishes them and runs them, so that a bad argument and a failure answer in the same
form everywhere, and every answer names only what its caller can call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final

from mcp.server import MCPServer
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import NotificationOptions, Server
from mcp.server.mcpserver import Context
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, CallToolResult, GetPromptResult, InputRequiredResult, Tool

from server.callers import Caller, Scope
from server.errors import ErrorCode, RookeryError
from tools.arguments import parse_arguments
from tools.backend import Backend
from tools.cleaning import guarded
from tools.definition import Call, ToolDefinition
from tools.elicitation import QuestionsPending, elicitation_of
from tools.errors import as_rookery_error, failure
from tools.identity import caller_of, caller_of_request
from tools.offer import Offer
from tools.subscriptions import Subscriptions
from tools.tasks import TasksExtension
from tools.toolsets import TOOLSETS

_ARGUMENTS: Final = {tool.name: frozenset(tool.arguments.model_fields) for tools in TOOLSETS.values() for tool in tools}
"""Of every tool that there is, the names of its arguments."""


class ToolServer(MCPServer[Any]):
    """An MCP server whose tools are :class:`ToolDefinition` s over one backend.

    It replaces the SDK's own handling of tools (which answers bad arguments in the validator's words and takes
    unknown ones in silence) and of bad calls of prompts at its public methods.

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
        self._offers: dict[frozenset[Scope], Offer] = {}
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

    def allowed(self, context: ServerRequestContext[Any, Any], scope: Scope) -> Caller:
        """On whose behalf a request of the protocol's layer is served, who must have a scope.

        Raises:
            RookeryError: ``policy_denied``; ``internal`` as :meth:`caller`.
        """
        caller = self.caller_of(context)
        caller.require(scope)
        return caller

    def caller_of(self, context: ServerRequestContext[Any, Any]) -> Caller:
        """On whose behalf a request of the protocol's layer is served.

        Raises:
            RookeryError: ``internal`` as :meth:`caller`.
        """
        return caller_of_request(context.request, self._caller)

    def offer(self, caller: Caller) -> Offer:
        """What a caller can call here."""
        offer = self._offers.get(caller.scopes)
        if offer is None:
            names = frozenset(name for name, tool in self._definitions.items() if caller.may(tool.needs))
            offer = self._offers[caller.scopes] = Offer(names, _ARGUMENTS, approves=caller.may(Scope.APPROVE))
        return offer

    @property
    def protocol(self) -> Server[Any]:
        """The protocol's layer below. The SDK's public entries take neither streams nor handlers of one's own; this is
        its private name for it, used here alone."""
        return self._lowlevel_server

    @property
    def tool_names(self) -> frozenset[str]:
        """Names of the tools that there are here, whoever may call them."""
        return frozenset(self._definitions)

    def told(self, context: ServerRequestContext[Any, Any], error: RookeryError) -> RookeryError:
        """An error as the caller of a request of the protocol's layer is told of it."""
        try:
            caller = self.caller_of(context)
        except RookeryError:
            return error
        return self.offer(caller).told(error)

    async def list_tools(self) -> list[Tool]:
        """All tools, always in the same order; those that extensions add come last."""
        if self._published is None:
            self._published = [definition.published() for definition in self._definitions.values()]
        return [*self._published, *await super().list_tools()]

    async def get_prompt(
        self, name: str, arguments: dict[str, Any] | None = None, context: Context[Any, Any] | None = None
    ) -> GetPromptResult | InputRequiredResult:
        """A prompt, filled in. The SDK alone would call its caller's mistakes failures of the server.

        Raises:
            MCPError: there is no such prompt, or its arguments are not those that it takes.
        """
        prompts = {prompt.name: prompt for prompt in await self.list_prompts()}
        fault = ""
        if (prompt := prompts.get(name)) is None:
            fault = "There is no such prompt; prompts/list shows those that there are."
        else:
            takes = {one.name: one for one in prompt.arguments or ()}
            given = set(arguments or {})
            missing = [one.name for one in takes.values() if one.required and one.name not in given]
            if missing:
                fault = f"`{missing[0]}` is missing: {name} needs it."
            elif given - takes.keys():
                fault = f"{name} takes no other arguments than {', '.join(takes)}."
        if fault:
            raise MCPError(code=INVALID_PARAMS, message=f"{ErrorCode.INVALID_ARGUMENT.value}: {fault}")
        return await super().get_prompt(name, arguments, context)

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Any, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        """Run a tool. A failure is an answer (``is_error``), never an exception; so are questions to the user."""
        definition = self._definitions.get(name)
        if definition is None and self._tool_manager.get_tool(name) is not None:
            return await super().call_tool(name, arguments, context)
        offer: Offer | None = None
        try:
            caller = self.caller(context)
            offer = self.offer(caller)
            if definition is None:
                known = ", ".join(tool for tool in self._definitions if tool in offer)
                raise RookeryError(ErrorCode.INVALID_ARGUMENT, f"There is no such tool; the tools are {known}.")
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
                offer=offer,
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
            return failure(known_error if offer is None else offer.told(known_error))


def _reporter(context: Context[Any, Any] | None) -> Callable[[float, str], Awaitable[None]] | None:
    if context is None:
        return None

    async def report(number: float, text: str) -> None:
        await context.report_progress(number, message=guarded(text))

    return report
