"""Answers that are pictures, sound or documents: beside the structured result, never in it, and marked like any text."""

from __future__ import annotations

from typing import Annotated

import mcp_types as types
import pytest
from pydantic import Field

from body_broker.blocks import Audio, Block, Document, Image, Text
from body_broker.calls import Arguments, Call, Prompt, PromptText, Resource, ResourceBytes, Result, Room, Tool
from mcp_servers.hub.rooms import ROOMS
from mcp_servers.hub.wire import OUTSIDE_MARK, OUTSIDE_META
from tests.mcp_servers.hub.conftest import OpenHub

BLOCKS: tuple[Block, ...] = (
    Text("A map of the ferry."),
    Image(b"\x89PNG", "image/png"),
    Audio(b"RIFF", "audio/wav"),
    Document("fx://log", "text/plain", "Day one."),
    Document("fx://seal", "application/octet-stream", b"\x00\x01"),
)
SHOWN = [
    types.TextContent(text="A map of the ferry."),
    types.ImageContent(data="iVBORw==", mime_type="image/png"),
    types.AudioContent(data="UklGRg==", mime_type="audio/wav"),
    types.EmbeddedResource(
        resource=types.TextResourceContents(uri="fx://log", mime_type="text/plain", text="Day one.")
    ),
    types.EmbeddedResource(
        resource=types.BlobResourceContents(uri="fx://seal", mime_type="application/octet-stream", blob="AAE=")
    ),
]


class Nothing(Arguments):
    """No arguments."""


class Gallery(Result):
    count: int
    shown: Annotated[tuple[Block, ...], Field(exclude=True)] = BLOCKS

    def blocks(self) -> tuple[Block, ...]:
        return self.shown


class Illustrated(PromptText):
    def blocks(self) -> tuple[Block, ...]:
        return BLOCKS[:2]


async def show(_arguments: Nothing, _call: Call, _services: object) -> Gallery:
    return Gallery(count=len(BLOCKS))


async def illustrate(_arguments: Nothing, _call: Call, _services: object) -> Illustrated:
    return Illustrated(content="", from_outside=False)


async def seal(_arguments: Nothing, _call: Call, _services: object) -> ResourceBytes:
    return ResourceBytes(content=b"\x00\x01")


ROOM = Room(
    name="gallery",
    title="Gallery",
    description="Rows that show.",
    tools=(
        Tool(name="fx_show", run=show, group="retrieval", title="Show", description="Fixture."),
        Tool(name="fx_found", run=show, group="retrieval", title="Found", description="Fixture.", output="outside"),
    ),
    resources=(
        Resource(
            name="fx_seal",
            run=seal,
            group="retrieval",
            title="Seal",
            description="Fixture.",
            uri="fx://seal",
            mime_type="image/png",
            output="as_marked",
        ),
    ),
    prompts=(Prompt(name="fx_drawn", run=illustrate, group="retrieval", title="Drawn", description="Fixture."),),
)


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_blocks_stand_beside_the_structured_result(open_hub: OpenHub, redis: object, mode: str) -> None:
    _ = redis  # flushed before the test
    async with open_hub((*ROOMS, ROOM)) as hub, hub.client("tier:silver", mode=mode) as client:
        tool = next(t for t in (await client.list_tools()).tools if t.name == "fx_show")
        ours = await client.call_tool("fx_show", {})
        found = await client.call_tool("fx_found", {})
        prompt = await client.get_prompt("fx_drawn")
        resource = await client.read_resource("fx://seal")
    assert tool.output_schema is not None
    assert tool.output_schema["properties"].keys() == {"count"}
    assert ours.content == SHOWN
    assert ours.structured_content == found.structured_content == {"count": 5}
    assert found.content == [types.TextContent(text=OUTSIDE_MARK), *SHOWN]
    assert found.meta is not None
    assert found.meta[OUTSIDE_META] is True
    assert [m.content for m in prompt.messages] == SHOWN[:2]
    assert resource.contents == [types.BlobResourceContents(uri="fx://seal", mime_type="image/png", blob="AAE=")]
    assert resource.meta is not None
    assert resource.meta[OUTSIDE_META] is True
