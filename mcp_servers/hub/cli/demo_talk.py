"""Owns the demo's talk: a player asks an NPC, and a model answers with the hub's tools where one is configured, or it says who could not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mcp_servers.hub.cli.demo_round import FERRYMAN, DemoFailed, say, seated
from mcp_servers.hub.tokens import Tokens

SAID = "For whom do you keep the lanterns on your ferry?"
_BUDGET_MS = 60_000  # whoever watches a demo waits for a small machine's model
_SHOWN = 300
_OF_THE_TESTS = "tiny"
"""What the tests' own server calls its model (docs/tiers.md)."""


async def go_talk(url: str, tokens: Tokens) -> None:
    """A player's question to the ferryman, brought by the game.

    Raises:
        DemoFailed: It was refused, or came without the NPC's state.
    """
    asked = {"npc_id": FERRYMAN, "message": SAID, "player": "demo", "latency_budget_ms": _BUDGET_MS}
    async with seated(url, tokens, "service:game") as game:
        talked = await game.ask("talk_to_npc", asked)
    called = [(each["name"], each["outcome"]) for each in talked["tools"]]
    if ("get_npc_state", "ok") not in called:
        raise DemoFailed(f"the talk did not read {FERRYMAN}: {called}")
    say("player", f"through service:game, to {FERRYMAN}: {SAID}")
    if talked["source"] not in {"model", "smaller"}:
        say("talks", _without_model(talked), "yellow")
        return
    says = " ".join(talked["says"].split())
    say("talks", f"{FERRYMAN}: {says if len(says) <= _SHOWN else f'{says[:_SHOWN]} …'}")
    say("called", f"{', '.join(f'{name} {outcome}' for name, outcome in called)}, each as service:game>tier:silver")
    say("model", answered_by(talked))


def answered_by(talked: Mapping[str, Any]) -> str:
    """Which model it was, how long it took and what it cost, in one line."""
    first = "" if talked["ttft_s"] is None else f", first word after {talked['ttft_s']:.2f} s"
    cost = "cost not known" if talked["cost_usd"] is None else f"{talked['cost_usd']:.4f} US dollars"
    chance = " (the tests' model: words by chance)" if talked["model"] == _OF_THE_TESTS else ""
    return f"{talked['model']}{chance} at {talked['engine']}: {talked['seconds']:.1f} s{first}, {cost}"


def _without_model(talked: dict[str, Any]) -> str:
    """The whole chain, in one line; engines without an address last."""
    downs = [(each["engine"], each["reason"]) for each in talked["fallbacks"]]
    steps = [f"{engine} {reason.replace('_', ' ')}" for engine, reason in downs if reason != "not_configured"]
    if absent := [engine for engine, reason in downs if reason == "not_configured"]:
        steps.append(f"without an address: {', '.join(absent)}")
    return f"{'; '.join(steps)}; so a {talked['source']}: {talked['says']} {talked['note'] or ''}".rstrip()
