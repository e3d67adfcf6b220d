"""The rows that the conformance suite calls, by the names and shapes its scenarios want; the questions they ask are in asking.py."""

from __future__ import annotations

import base64
import json
from typing import Annotated, Any

from mcp.server.subscriptions import PromptsListChanged, ToolsListChanged
from pydantic import ConfigDict, Field

from body_broker.blocks import Audio, Block, Document, Image, Text
from body_broker.calls import (
    Arguments,
    Call,
    Prompt,
    PromptText,
    Resource,
    ResourceBytes,
    ResourceText,
    Result,
    Room,
    Tool,
)
from body_broker.errors import Conflict
from mcp_servers.hub.events import EventBus
from tests.conformance import asking
from tests.conformance.asking import Nothing, Said

_PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
)
_WAV = base64.b64decode("UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAAB9AAACABAAZGF0YQIAAAA=")
_PICTURE = Image(_PNG, "image/png")


class Shown(Result):
    shown: Annotated[tuple[Block, ...], Field(exclude=True)]
    count: int

    def blocks(self) -> tuple[Block, ...]:
        return self.shown


def shows(*blocks: Block) -> Any:  # a row's function
    async def show(_arguments: Nothing, _call: Call, _services: object) -> Shown:
        return Shown(shown=blocks, count=len(blocks))

    return show


async def simple_text(_arguments: Nothing, _call: Call, _services: object) -> Said:
    return Said(said="This is a simple text response for testing.")


async def progress(_arguments: Nothing, call: Call, _services: object) -> Said:
    for done in (0, 50, 100):
        await call.progress(done, 100)
    return Said(said="Progress test complete.")


async def logging(_arguments: Nothing, call: Call, _services: object) -> Said:
    for done, line in enumerate(("Tool execution started", "Tool processing data", "Tool execution completed")):
        await call.progress(done, 3, line)
    return Said(said="Logging test complete.")


class Headed(Arguments):
    region: Annotated[str, Field(max_length=200, json_schema_extra={"x-mcp-header": "Region"})]


async def headed(arguments: Headed, _call: Call, _services: object) -> Said:
    return Said(said=arguments.region)


async def error(_arguments: Nothing, _call: Call, _services: object) -> Said:
    raise Conflict("This tool intentionally returns an error for testing.")


async def change_tools(_arguments: Nothing, _call: Call, bus: EventBus) -> Said:
    await bus.publish(ToolsListChanged())
    return Said(said="Told.")


async def change_prompts(_arguments: Nothing, _call: Call, bus: EventBus) -> Said:
    await bus.publish(PromptsListChanged())
    return Said(said="Told.")


class address(Arguments):  # noqa: N801  # its name in $defs
    model_config = ConfigDict(json_schema_extra={"$anchor": "address"})

    street: str = ""
    city: str = ""


_Address = address  # the field has the same name


class Addressed(Arguments):
    """An input schema with the keywords of JSON Schema 2020-12 that pydantic does not write by itself."""

    model_config = ConfigDict(
        json_schema_extra={
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "allOf": [{"anyOf": [{"required": ["name"]}, {"required": ["address"]}, {}]}],
            "if": {"required": ["address"]},
            "then": {"properties": {"name": {"maxLength": 100}}},
            "else": {"properties": {"name": {"maxLength": 50}}},
        }
    )

    name: Annotated[str, Field(max_length=100)] = ""
    address: _Address | None = None


async def json_schema(arguments: Addressed, _call: Call, _services: object) -> Said:
    return Said(said=arguments.name)


async def static_text(_arguments: Nothing, _call: Call, _services: object) -> ResourceText:
    return ResourceText(content="This is the content of the static text resource.", from_outside=False)


async def static_binary(_arguments: Nothing, _call: Call, _services: object) -> ResourceBytes:
    return ResourceBytes(content=_PNG, from_outside=False)


class Named(Arguments):
    id: Annotated[str, Field(max_length=80)]


async def template(arguments: Named, _call: Call, _services: object) -> ResourceText:
    data = {"id": arguments.id, "templateTest": True, "data": f"Data for ID: {arguments.id}"}
    return ResourceText(content=json.dumps(data), from_outside=False)


class Filled(PromptText):
    shown: Annotated[tuple[Block, ...], Field(exclude=True)]

    def blocks(self) -> tuple[Block, ...]:
        return self.shown


class Two(Arguments):
    arg1: Annotated[str, Field(max_length=80)]
    arg2: Annotated[str, Field(max_length=80)]


class Embedded(Arguments):
    resourceUri: Annotated[str, Field(max_length=200)]  # noqa: N815 - the suite's name


async def simple_prompt(_arguments: Nothing, _call: Call, _services: object) -> PromptText:
    return PromptText(content="This is a simple prompt for testing.", from_outside=False)


async def prompt_with_arguments(arguments: Two, _call: Call, _services: object) -> PromptText:
    return PromptText(
        content=f"Prompt with arguments: arg1='{arguments.arg1}', arg2='{arguments.arg2}'", from_outside=False
    )


async def prompt_with_document(arguments: Embedded, _call: Call, _services: object) -> Filled:
    document = Document(arguments.resourceUri, "text/plain", "Embedded resource content for testing.")
    return Filled(content="", shown=(document, Text("Please process the embedded resource above.")), from_outside=False)


async def prompt_with_image(_arguments: Nothing, _call: Call, _services: object) -> Filled:
    return Filled(content="", shown=(_PICTURE, Text("Please analyze the image above.")), from_outside=False)


def tool(name: str, run: Any, **more: Any) -> Tool:
    return Tool(name=name, run=run, group="admin_read", title=name, description=f"Fixture {name}.", **more)


def resource(name: str, run: Any, uri: str, mime_type: str) -> Resource:
    text = f"Fixture {name}."
    return Resource(name=name, run=run, group="admin_read", title=name, description=text, uri=uri, mime_type=mime_type)


def prompt(name: str, run: Any, **more: Any) -> Prompt:
    return Prompt(name=name, run=run, group="admin_read", title=name, description=f"Fixture {name}.", **more)


ROOM = Room(
    name="conformance",
    title="Conformance",
    description="What the official conformance suite calls.",
    tools=(
        tool("test_simple_text", simple_text),
        tool("test_image_content", shows(_PICTURE)),
        tool("test_audio_content", shows(Audio(_WAV, "audio/wav"))),
        tool(
            "test_embedded_resource",
            shows(Document("test://embedded-resource", "text/plain", "This is an embedded resource content.")),
        ),
        tool(
            "test_multiple_content_types",
            shows(
                Text("Multiple content types test:"),
                _PICTURE,
                Document("test://mixed-content-resource", "application/json", '{"test":"data","value":123}'),
            ),
        ),
        tool("test_tool_with_progress", progress, reports_progress=True),
        tool("test_tool_with_logging", logging, reports_progress=True),
        tool("test_logging_tool", logging, reports_progress=True),
        tool("test_custom_headers", headed),
        tool("test_error_handling", error),
        tool("json_schema_2020_12_tool", json_schema),
        tool("test_trigger_tool_change", change_tools, effect="repeatable"),
        tool("test_trigger_prompt_change", change_prompts, effect="repeatable"),
        *(tool(name, run, asks=True) for name, run in asking.TOOLS.items()),
    ),
    resources=(
        resource("test_static_text", static_text, "test://static-text", "text/plain"),
        resource("test_static_binary", static_binary, "test://static-binary", "image/png"),
        resource("test_watched", static_text, "test://watched-resource", "text/plain"),
        resource("test_template", template, "test://template/{id}/data", "application/json"),
    ),
    prompts=(
        prompt("test_simple_prompt", simple_prompt),
        prompt("test_prompt_with_arguments", prompt_with_arguments),
        prompt("test_prompt_with_embedded_resource", prompt_with_document),
        prompt("test_prompt_with_image", prompt_with_image),
        prompt("test_input_required_result_prompt", asking.prompt, asks=True),
    ),
)
