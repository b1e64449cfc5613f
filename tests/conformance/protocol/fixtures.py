"""The tools, resources and prompts that the MCP conformance suite calls by name; it tests them, and not Rookery's.

Names and answers are the suite's (its scenarios' descriptions). They exist in this module of the tests alone.
"""

from __future__ import annotations

import base64
import json
from typing import Annotated, Any, Final, Literal

import anyio
from mcp.server.mcpserver import Context, Image
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.prompts.base import UserMessage
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import PromptsListChanged, ServerEvent, ToolsListChanged
from mcp_types import (
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    AudioContent,
    ClientCapabilities,
    CreateMessageRequest,
    CreateMessageRequestParams,
    CreateMessageResult,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    EmbeddedResource,
    EmptyResult,
    ImageContent,
    InputRequiredResult,
    ListRootsRequest,
    ListRootsResult,
    SamplingCapability,
    SamplingMessage,
    SetLevelRequestParams,
    TextContent,
    TextResourceContents,
)
from pydantic import Field

from tools.tool_server import ToolServer

PNG: Final = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
)
WAV: Final = base64.b64decode("UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQAAAAA=")

SCHEMA_2020_12: Final[dict[str, Any]] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}

Ctx = Context[Any, Any]


def add_fixtures(server: ToolServer) -> None:
    """Put all of them on a server."""
    _add_contents(server)
    _add_conversations(server)
    _add_rounds(server)
    _add_diagnostics(server)
    _add_resources(server)
    _add_prompts(server)


def describe(server: ToolServer) -> None:
    """Give what has no description one: the suite wants each to have it."""
    words = "A fixture of the conformance suite."
    for tool in server._tool_manager.list_tools():
        tool.description = tool.description or words
    for prompt in server._prompt_manager.list_prompts():
        prompt.description = prompt.description or words


def image() -> ImageContent:
    return ImageContent(type="image", data=base64.b64encode(PNG).decode(), mime_type="image/png")


def resource(uri: str, text: str, mime_type: str = "text/plain") -> EmbeddedResource:
    return EmbeddedResource(type="resource", resource=TextResourceContents(uri=uri, mime_type=mime_type, text=text))


def _add_contents(server: ToolServer) -> None:
    @server.tool()
    async def test_simple_text() -> str:
        return "This is a simple text response for testing."

    @server.tool(structured_output=False)
    async def test_image_content() -> ImageContent:
        return image()

    @server.tool(structured_output=False)
    async def test_audio_content() -> AudioContent:
        return AudioContent(type="audio", data=base64.b64encode(WAV).decode(), mime_type="audio/wav")

    @server.tool(structured_output=False)
    async def test_embedded_resource() -> EmbeddedResource:
        return resource("test://embedded-resource", "This is an embedded resource content.")

    @server.tool(structured_output=False)
    async def test_multiple_content_types() -> list[Any]:
        return [
            TextContent(type="text", text="Multiple content types test:"),
            image(),
            resource("test://mixed-content-resource", '{"test":"data","value":123}', "application/json"),
        ]

    @server.tool()
    async def test_error_handling() -> str:
        raise ToolError("This tool intentionally returns an error for testing")

    @server.tool()
    async def test_tool_with_progress(ctx: Ctx) -> str:
        for done in (0, 50, 100):
            await ctx.report_progress(done, 100, f"Completed {done} of 100")
            await anyio.sleep(0.05)
        return "done"

    @server.tool(description="Tool with JSON Schema 2020-12 features")
    async def json_schema_2020_12_tool(name: str = "") -> str:
        return name

    tool = server._tool_manager.get_tool("json_schema_2020_12_tool")
    assert tool is not None
    tool.parameters = SCHEMA_2020_12

    @server.tool()
    async def test_custom_header(
        region: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Region"})] = "", query: str = ""
    ) -> str:
        return f"{region} {query}"


def _add_conversations(server: ToolServer) -> None:
    """What asks the client in the older era."""

    @server.tool()
    async def test_tool_with_logging(ctx: Ctx) -> str:
        for text in ("Tool execution started", "Tool processing data", "Tool execution completed"):
            await ctx.info(text)
            await anyio.sleep(0.05)
        return "done"

    @server.tool()
    async def test_sampling(prompt: str, ctx: Ctx) -> str:
        said = await ctx.session.create_message(
            messages=[SamplingMessage(role="user", content=TextContent(type="text", text=prompt))], max_tokens=100
        )
        assert isinstance(said.content, TextContent)
        return f"LLM response: {said.content.text}"

    async def asked(ctx: Ctx, message: str, schema: dict[str, Any]) -> str:
        answer = await ctx.session.elicit_form(message, schema, ctx.request_id)
        return f"action={answer.action}, content={json.dumps(answer.content)}"

    def form(required: list[str] | None = None, **properties: dict[str, Any]) -> dict[str, Any]:
        return {"type": "object", "properties": properties, "required": required or []}

    @server.tool()
    async def test_elicitation(message: str, ctx: Ctx) -> str:
        schema = form(
            ["username", "email"],
            username={"type": "string", "description": "User's response"},
            email={"type": "string", "description": "User's email address"},
        )
        return "User response: " + await asked(ctx, message, schema)

    @server.tool()
    async def test_elicitation_sep1034_defaults(ctx: Ctx) -> str:
        schema = form(
            name={"type": "string", "default": "John Doe"},
            age={"type": "integer", "default": 30},
            score={"type": "number", "default": 95.5},
            status={"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
            verified={"type": "boolean", "default": True},
        )
        return "Elicitation completed: " + await asked(ctx, "Please check the defaults", schema)

    @server.tool()
    async def test_elicitation_sep1330_enums(ctx: Ctx) -> str:
        options = ["option1", "option2", "option3"]
        titled = [{"const": f"value{n}", "title": f"{word} Option"} for n, word in enumerate(("First", "Second"), 1)]
        schema = form(
            untitledSingle={"type": "string", "enum": options},
            titledSingle={"type": "string", "oneOf": titled},
            legacyEnum={
                "type": "string",
                "enum": ["opt1", "opt2", "opt3"],
                "enumNames": ["Option One", "Option Two", "Option Three"],
            },
            untitledMulti={"type": "array", "items": {"type": "string", "enum": options}},
            titledMulti={"type": "array", "items": {"anyOf": titled}},
        )
        return "Elicitation completed: " + await asked(ctx, "Please choose", schema)

    async def set_level(_: Any, params: SetLevelRequestParams) -> EmptyResult:
        return EmptyResult()

    server.protocol.add_request_handler("logging/setLevel", SetLevelRequestParams, set_level)


def elicit(message: str, **properties: dict[str, Any]) -> ElicitRequest:
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return ElicitRequest(params=ElicitRequestFormParams(message=message, requested_schema=schema))


def sample(text: str, max_tokens: int) -> CreateMessageRequest:
    message = SamplingMessage(role="user", content=TextContent(type="text", text=text))
    return CreateMessageRequest(params=CreateMessageRequestParams(messages=[message], max_tokens=max_tokens))


def given(ctx: Ctx, key: str, field: str) -> Any:
    """A field of a form that the client has sent back; None when it has not."""
    answer = (ctx.input_responses or {}).get(key)
    return (answer.content or {}).get(field) if isinstance(answer, ElicitResult) else None


def _add_rounds(server: ToolServer) -> None:
    """What asks the client by its result, in the newer era."""
    name = elicit("What is your name?", name={"type": "string"})

    @server.tool()
    async def test_input_required_result_elicitation(ctx: Ctx) -> str | InputRequiredResult:
        known = given(ctx, "user_name", "name")
        return InputRequiredResult(input_requests={"user_name": name}) if known is None else f"Hello, {known}!"

    @server.tool()
    async def test_input_required_result_sampling(ctx: Ctx) -> str | InputRequiredResult:
        said = (ctx.input_responses or {}).get("capital_question")
        if isinstance(said, CreateMessageResult):
            return str(getattr(said.content, "text", said.content))
        return InputRequiredResult(input_requests={"capital_question": sample("What is the capital of France?", 100)})

    @server.tool()
    async def test_input_required_result_list_roots(ctx: Ctx) -> str | InputRequiredResult:
        found = (ctx.input_responses or {}).get("client_roots")
        if isinstance(found, ListRootsResult):
            return ", ".join(str(root.uri) for root in found.roots)
        return InputRequiredResult(input_requests={"client_roots": ListRootsRequest()})

    @server.tool()
    async def test_input_required_result_request_state(ctx: Ctx) -> str | InputRequiredResult:
        if ctx.request_state == "kept" and given(ctx, "confirm", "ok") is not None:
            return "state-ok"
        confirm = elicit("Please confirm", ok={"type": "boolean"})
        return InputRequiredResult(input_requests={"confirm": confirm}, request_state="kept")

    @server.tool()
    async def test_input_required_result_tampered_state(ctx: Ctx) -> str | InputRequiredResult:
        return await test_input_required_result_request_state(ctx)

    @server.tool()
    async def test_input_required_result_multiple_inputs(ctx: Ctx) -> str | InputRequiredResult:
        requests = {
            "user_name": name,
            "greeting": sample("Generate a greeting", 50),
            "client_roots": ListRootsRequest(),
        }
        if ctx.request_state == "asked" and requests.keys() <= (ctx.input_responses or {}).keys():
            return f"Hello, {given(ctx, 'user_name', 'name')}!"
        return InputRequiredResult(input_requests=requests, request_state="asked")

    @server.tool()
    async def test_input_required_result_multi_round(ctx: Ctx) -> str | InputRequiredResult:
        if ctx.request_state is not None and ctx.request_state.startswith("second:"):
            colour = given(ctx, "step2", "color")
            if colour is not None:
                return f"{ctx.request_state.removeprefix('second:')} likes {colour}"
        known = given(ctx, "step1", "name")
        if known is None:
            step = elicit("Step 1: What is your name?", name={"type": "string"})
            return InputRequiredResult(input_requests={"step1": step}, request_state="first")
        step = elicit("Step 2: What is your favorite color?", color={"type": "string"})
        return InputRequiredResult(input_requests={"step2": step}, request_state=f"second:{known}")

    @server.tool()
    async def test_input_required_result_capabilities(ctx: Ctx) -> str | InputRequiredResult:
        declared = ctx.client_capabilities or ClientCapabilities()
        requests: dict[str, Any] = {}
        if declared.elicitation is not None:
            requests["user_name"] = name
        if declared.sampling is not None:
            requests["greeting"] = sample("Generate a greeting", 50)
        if declared.roots is not None:
            requests["client_roots"] = ListRootsRequest()
        return InputRequiredResult(input_requests=requests) if requests and not ctx.input_responses else "done"

    @server.prompt()
    async def test_input_required_result_prompt(ctx: Ctx) -> str | InputRequiredResult:
        known = given(ctx, "user_context", "context")
        if known is not None:
            return f"Use this context: {known}"
        ask = elicit("What context should the prompt use?", context={"type": "string"})
        return InputRequiredResult(input_requests={"user_context": ask})


def _add_diagnostics(server: ToolServer) -> None:
    @server.tool()
    async def test_missing_capability(ctx: Ctx) -> str:
        declared = ctx.client_capabilities
        if declared is None or declared.sampling is None:
            needed = ClientCapabilities(sampling=SamplingCapability())
            raise MCPError(
                code=MISSING_REQUIRED_CLIENT_CAPABILITY,
                message="This tool needs sampling.",
                data={"requiredCapabilities": needed.model_dump(by_alias=True, exclude_none=True)},
            )
        return "done"

    @server.tool()
    async def test_streaming_elicitation(ctx: Ctx) -> str | InputRequiredResult:
        await ctx.report_progress(1, 2, "asking")
        if given(ctx, "user_name", "name") is not None:
            return "done"
        return InputRequiredResult(input_requests={"user_name": elicit("Name?", name={"type": "string"})})

    @server.tool()
    async def test_logging_tool(ctx: Ctx) -> str:
        await ctx.info("This reaches only who asked for it")
        return "done"

    async def tell(event: ServerEvent) -> Literal["told"]:
        assert server.subscriptions is not None
        await server.subscriptions.tell_all(event)
        return "told"

    @server.tool()
    async def test_trigger_tool_change() -> str:
        return await tell(ToolsListChanged())

    @server.tool()
    async def test_trigger_prompt_change() -> str:
        return await tell(PromptsListChanged())

    @server.tool()
    async def test_reconnection(ctx: Ctx) -> str:
        await ctx.close_sse_stream()
        await anyio.sleep(0.1)
        return "Reconnection test completed"


def _add_resources(server: ToolServer) -> None:
    @server.resource("test://static-text", mime_type="text/plain")
    def static_text() -> str:
        return "This is the content of the static text resource."

    @server.resource("test://static-binary", mime_type="image/png")
    def static_binary() -> bytes:
        return PNG

    @server.resource("test://template/{id}/data", mime_type="application/json")
    def template(id: str) -> str:
        return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})

    @server.resource("test://watched-resource", mime_type="text/plain")
    def watched() -> str:
        return "watched"


def _add_prompts(server: ToolServer) -> None:
    @server.prompt()
    def test_simple_prompt() -> str:
        return "This is a simple prompt for testing."

    @server.prompt()
    def test_prompt_with_arguments(arg1: str, arg2: str) -> str:
        return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"

    @server.prompt()
    def test_prompt_with_embedded_resource(resourceUri: str) -> list[UserMessage]:  # noqa: N803 - the suite's name
        return [
            UserMessage(resource(resourceUri, "Embedded resource content for testing.")),
            UserMessage("Please process the embedded resource above."),
        ]

    @server.prompt()
    def test_prompt_with_image() -> list[UserMessage]:
        return [
            UserMessage(Image(data=PNG, format="png").to_image_content()),
            UserMessage("Please analyze the image above."),
        ]
