"""Owns the demo's round: six identities make real MCP calls on every server, and each step must go as it is said to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import click
import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, TextContent

from mcp_servers.hub.cli.context import operator
from mcp_servers.hub.tokens import Tokens

QUESTION = "Which ferryman keeps a lantern for each of his passengers who drowned?"
IN_OTHER_WORDS = "Which bureaucrat audits the cemetery?"  # shares no word with the passage it asks for
FERRYMAN, STEPS, MARKET = "osric_vane", "ferry_steps", "fish_market"
SCENE = "Wren Vane rowed the ferry to the rock at dawn. Osric Vane watched from the steps."
REPOSITORY = "demo-stall"
_LOOK_EVERY_S, _LOOKS = 0.02, 500
_SHOWN = 150


class DemoFailed(Exception):
    """A step did not go as said."""


@dataclass(frozen=True, slots=True)
class Seat:
    """One identity at the table: who it is and its client, the official SDK over HTTP."""

    who: str
    client: Client

    async def ask(self, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """What a call answers.

        Raises:
            DemoFailed: It was refused.
        """
        result = await self.client.call_tool(tool, arguments)
        if result.is_error:
            raise DemoFailed(f"{self.who} was refused {tool}: {_text(result)}")
        content: Any = result.structured_content
        return content

    async def refused(self, tool: str, arguments: dict[str, Any], code: str) -> dict[str, Any]:
        """The error of a call that must be refused by this code.

        Raises:
            DemoFailed: It was not, or otherwise.
        """
        result = await self.client.call_tool(tool, arguments)
        content: Any = result.structured_content or {}
        error: dict[str, Any] = content.get("error", {})
        if not result.is_error or error.get("code") != code:
            raise DemoFailed(f"{self.who} should be refused {tool} as {code}: {_text(result)}")
        return error


@asynccontextmanager
async def seated(url: str, tokens: Tokens, who: str, *roles: str) -> AsyncGenerator[Seat]:
    """An identity with a token of its own, connected; a person of the demo leaves no login and no role behind."""
    issued = await tokens.issue(who, roles=roles, ttl_s=3600, by=operator())
    try:
        async with (
            httpx2.AsyncClient(headers={"authorization": f"Bearer {issued.token}"}, timeout=60) as http,
            Client(streamable_http_client(url, http_client=http)) as client,
        ):
            yield Seat(who, client)
    finally:
        if roles:
            await tokens.set_roles(who, (), by=operator())
            await tokens.revoke(principal=who, by=operator())
        else:
            await tokens.revoke(jti=issued.jti, by=operator())


async def go_round(url: str, tokens: Tokens, *, by_meaning: bool) -> None:
    """Everybody's turn.

    Raises:
        DemoFailed: A step did not go as said.
    """
    async with seated(url, tokens, "tier:silver") as silver:
        await _silver_reads(silver, by_meaning=by_meaning)
        async with seated(url, tokens, "service:game") as game, seated(url, tokens, "tier:gold") as gold:
            await _the_game_changes(game, gold)
    async with seated(url, tokens, "person:demo-dora", "designer") as designer:
        await _a_designer_checks(designer)
    async with seated(url, tokens, "person:demo-sam", "security") as security:
        scan_id = await _security_scans(security)
    async with seated(url, tokens, "person:demo-sasha", "sre") as sre:
        if scan_id is not None:
            await _operations_read(sre, scan_id)
        await _operations_ask_aws(sre)


async def _silver_reads(silver: Seat, *, by_meaning: bool) -> None:
    names = sorted(t.name for t in (await silver.client.list_tools()).tools)
    say("silver", f"connects over MCP {silver.client.protocol_version} and is shown {len(names)} tools")
    for question in (QUESTION, *((IN_OTHER_WORDS,) if by_meaning else ())):
        found = (await silver.ask("search_lore", {"query": question, "k": 1}))["items"]
        if not found:
            raise DemoFailed(f"search_lore found nothing for: {question}")
        say("asks", f"search_lore: {question}")
        say("finds", _short(found[0]["content"]))
        say("cited", f"{found[0]['title']}, characters {found[0]['start']}-{found[0]['end']} of {found[0]['doc_id']}")
    told = await silver.ask("retrieve_lore", {"topic": "the ferry", "context": {"npc": FERRYMAN}})
    say("asks", f"retrieve_lore about the ferry, for {FERRYMAN}: {len(told['passages'])} passages with citations")
    npc = await silver.ask("get_npc_state", {"npc_id": FERRYMAN})
    say("npc", f"{npc['state']['name']} is at {npc['state']['place']}, {npc['state']['mood']}: {_trust(npc)}")
    error = await silver.refused("query_aws_resource", {"service": "ec2", "resource": "instances"}, "denied")
    say("refused", f"query_aws_resource, by rule {', '.join(error['rules'])}: {error['message']}", "yellow")


async def _the_game_changes(game: Seat, gold: Seat) -> None:
    before = await gold.ask("get_npc_state", {"npc_id": FERRYMAN, "fresh": False})
    place = MARKET if before["state"]["place"] == STEPS else STEPS
    change = {"entity_id": FERRYMAN, "op": "move", "payload": {"to": place}}
    queued = await game.ask("queue_state_change", {"change": change, "expect_version": before["version"]})
    say("game", f"service:game queues {FERRYMAN} to {place}, expecting version {before['version']}: {queued['status']}")
    decided = await _decided(game, queued["change_id"])
    if decided["status"] != "applied":
        raise DemoFailed(f"the engine did not apply the change: {decided}")
    say("engine", f"{decided['status']}: {FERRYMAN} is version {decided['version']} at tick {decided['as_of_tick']}")
    after = await gold.ask("get_npc_state", {"npc_id": FERRYMAN, "fresh": False})
    if (after["state"]["place"], after["version"] > before["version"]) != (place, True):
        raise DemoFailed(f"gold does not see it: {after}")
    say("gold", f"sees {after['state']['name']} at {place}: {_trust(after)}")
    late = await game.ask("queue_state_change", {"change": change, "expect_version": before["version"]})
    late = await _decided(game, late["change_id"])
    if late["status"] != "conflict":
        raise DemoFailed(f"a change of a version that is gone was not a conflict: {late}")
    say("game", f"the same again, expecting version {before['version']} still: {late['status']}", "yellow")


async def _decided(game: Seat, change_id: str) -> dict[str, Any]:
    """How a change ended."""
    for _ in range(_LOOKS):
        found = await game.ask("get_change_status", {"change_id": change_id})
        if found["status"] != "queued":
            return found
        await asyncio.sleep(_LOOK_EVERY_S)
    raise DemoFailed(f"no engine decided {change_id} within {_LOOKS * _LOOK_EVERY_S:g} s")


async def _a_designer_checks(designer: Seat) -> None:
    checked = await designer.ask("check_consistency", {"narrative": SCENE, "existing_lore": {}})
    if checked["consistent"] is not False or not checked["violations"]:
        raise DemoFailed(f"the scene was not found inconsistent: {checked}")
    found = checked["violations"][0]
    say("designer", f"checks a scene against canon: {SCENE}")
    say(
        "violates",
        f"{found['code']}: “{found['claim']}” against {found['conflicts_with']['text']} ({found['conflicts_with']['source']})",
        "yellow",
    )
    coverage = checked["coverage"]
    say("coverage", f"{coverage['understood']} of {coverage['sentences']} sentences understood")


async def _security_scans(security: Seat) -> str | None:
    """The scan's id; None where the scanners are not installed, and the verdict says that."""
    report = await security.ask("scan_codebase", {"repo_path": REPOSITORY})
    ran = ", ".join(f"{s['name']} {s['status']}" for s in report["scanners"])
    say("security", f"scans {REPOSITORY} ({ran}): {report['verdict']}")
    lacks = any(s["name"] == "semgrep" and s["status"] == "not_installed" for s in report["scanners"])
    if report["verdict"] != ("inconclusive" if lacks else "findings"):
        raise DemoFailed(f"the planted fault was not found: {report['verdict']}")
    if lacks:
        say("lacks", "semgrep: `body-broker scanners install` brings it to those who came by plain pip", "yellow")
        return None
    scan_id: str = report["scan_id"]
    return scan_id


async def _operations_read(sre: Seat, scan_id: str) -> None:
    """Whoever reads findings has read text from outside and cannot scan again without a person; so another one reads them."""
    page = await sre.ask("list_findings", {"scan_id": scan_id, "limit": 1})
    found = page["items"][0]
    say("sre", f"reads its findings: {found['severity']} {found['rule']} at {found['path']}:{found['line']}", "yellow")


async def _operations_ask_aws(sre: Seat) -> None:
    error = await sre.refused("query_aws_resource", {"service": "ec2", "resource": "instances"}, "not_configured")
    say("aws", f"{error['code']}: {error['message']} {error['next_step']}", "yellow")


def say(what: str, text: str, colour: str = "green") -> None:
    """One line of the demo."""
    click.echo(f"  {click.style(f'{what:8}', fg=colour)} {text}")


def _trust(read: dict[str, Any]) -> str:
    return f"version {read['version']}, tick {read['as_of_tick']}, {read['age_ms']} ms old, from the {read['source']}"


def _short(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _SHOWN else f"{words[:_SHOWN]} …"


def _text(result: CallToolResult) -> str:
    return " ".join(block.text for block in result.content if isinstance(block, TextContent))
