"""Shows every caller what it can call, and no more: of the tools, of the prompts, and in what is said of them.

The protocol's layer lists what a server has, which is more than a reader's token may call. One place narrows all such
lists, in both eras, by the one :class:`~tools.offer.Offer` that calls and their answers are told by as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, INVALID_REQUEST

from server.errors import RookeryError
from tools.instructions import instructions_for
from tools.offer import Offer
from tools.prompts import NEEDS
from tools.tool_server import ToolServer

Result = dict[str, Any]


class Showing:
    """A middleware of the protocol's layer. A request without an identity is shown nothing.

    Args:
        server: whose lists these are.
    """

    def __init__(self, server: ToolServer) -> None:
        self._server = server
        self._narrowed: Final[Mapping[str, Callable[[Result, Offer], Result]]] = {
            "initialize": self._introduced,
            "server/discover": self._introduced,
            "tools/list": self._tools,
            "prompts/list": self._prompts,
        }

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        if ctx.method == "prompts/get":
            self._require(ctx)
        narrowed = self._narrowed.get(ctx.method)
        if narrowed is None:
            return await call_next(ctx)
        offer = self._offer(ctx)
        result = await call_next(ctx)
        # What is within writes results for the wire, and such a one alone is understood here.
        if not isinstance(result, dict):
            raise MCPError(code=INTERNAL_ERROR, message="internal: what you can call could not be told.")
        return narrowed(result, offer)

    def _offer(self, context: ServerRequestContext[Any, Any]) -> Offer:
        try:
            return self._server.offer(self._server.caller_of(context))
        except RookeryError as error:
            raise MCPError(code=INTERNAL_ERROR, message=str(error)) from error

    def _require(self, context: ServerRequestContext[Any, Any]) -> None:
        """Refuse a prompt that its caller is not shown."""
        offer = self._offer(context)
        name = (context.params or {}).get("name")
        lacking = [tool for tool in NEEDS.get(name, ()) if tool not in offer] if isinstance(name, str) else []
        if lacking:
            message = f"policy_denied: The prompt {name} speaks of tools that you cannot call ({', '.join(lacking)})."
            raise MCPError(code=INVALID_REQUEST, message=message)

    def _introduced(self, result: Result, offer: Offer) -> Result:
        return {**result, "instructions": instructions_for(offer.names)}

    def _tools(self, result: Result, offer: Offer) -> Result:
        # What extensions add needs no scope.
        ours = self._server.tool_names
        shown = [tool for tool in result["tools"] if tool["name"] in offer or tool["name"] not in ours]
        return {**result, "tools": [_described(tool, offer) for tool in shown]}

    def _prompts(self, result: Result, offer: Offer) -> Result:
        shown = [prompt for prompt in result["prompts"] if all(tool in offer for tool in NEEDS.get(prompt["name"], ()))]
        return {**result, "prompts": shown}


def _described(part: Any, offer: Offer) -> Any:
    """A tool or a part of it, whose descriptions name only tools that are offered."""
    match part:
        case dict():
            told = {key: _described(value, offer) for key, value in part.items()}
            text = part.get("description")
            if isinstance(text, str):
                told["description"] = offer.described(text)
            return told
        case list():
            return [_described(value, offer) for value in part]
        case _:
            return part
