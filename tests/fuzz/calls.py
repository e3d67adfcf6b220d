"""Owns the schema fuzz: drawn calls through the hub's front, each answer and each decision checked."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from jsonschema import Draft202012Validator

from body_broker.calls import OUTSIDE_META, Tool
from mcp_servers.hub.front import Front
from mcp_servers.hub.listing import tool_definition
from policies.decision import Decision, Question
from policies.engine import Policy
from tests.fuzz.drawing import Drawing, Things
from tests.fuzz.table import LATER, TOOLS
from tests.mcp_servers.hub.test_gate import modern, request
from tests.policies.oracle import oracle, outcome

Decided = list[tuple[Question, Decision]]
_DECIDED: ContextVar[Decided] = ContextVar("decided")
_ASKED = frozenset({"approval_pending", "approval_denied", "approval_expired"})


@dataclass(frozen=True, slots=True)
class Who:
    """A caller: its token, its session and, in a conversation, its asker's."""

    name: str
    token: str
    sessions: tuple[str, ...]


@dataclass
class Tally:
    """What came of the calls."""

    calls: int = 0
    reached: int = 0
    verdicts: Counter[str] = field(default_factory=Counter[str])
    codes: Counter[str] = field(default_factory=Counter[str])
    tools: Counter[str] = field(default_factory=Counter[str])
    limits: Counter[str] = field(default_factory=Counter[str])
    """What was refused for a limit, in its own words without their numbers."""
    faults: list[str] = field(default_factory=list[str])


def watch(policy: Policy) -> None:
    """Let every decision of this policy be seen by the call that it is made for; nothing of it changes."""
    decide = policy.decide

    def seen(question: Question) -> Decision:
        found = decide(question)
        if (heard := _DECIDED.get(None)) is not None:
            heard.append((question, found))
        return found

    vars(policy)["decide"] = seen


class Fuzz:
    """Calls drawn from a seed.

    Args:
        front: The hub's ASGI application, whose Host is `host`.
        tools: What is called.
        whos: Who calls; each calls one thing at a time.
        things: Ids of what exists.
    """

    def __init__(self, front: Front, host: str, tools: Sequence[Tool], whos: Sequence[Who], things: Things) -> None:
        self._front, self._host, self.whos, self.things = front, host.encode(), whos, things
        policy = front.protocol.gate.policy
        self._tools = [tool for tool in tools if tool.name not in LATER]
        definitions = {tool.name: tool_definition(tool, reasoned=policy.askable(tool.name)) for tool in self._tools}
        self._inputs = {name: found.input_schema for name, found in definitions.items()}
        self._errors = {name: Draft202012Validator(found.output_schema or {}) for name, found in definitions.items()}
        self._results = {
            tool.name: Draft202012Validator(tool.result.model_json_schema(mode="serialization")) for tool in self._tools
        }
        self._read: defaultdict[str, bool] = defaultdict(bool)
        self.tally = Tally()

    async def run(self, calls: int, *, seed: int) -> Tally:
        """This many calls, shared among those who call."""
        share = -(-calls // len(self.whos))
        async with asyncio.TaskGroup() as group:
            for number, who in enumerate(self.whos):
                group.create_task(self._calls(who, share, random.Random(f"{seed} {number}")))  # noqa: S311 - a fuzzer's
        return self.tally

    async def _calls(self, who: Who, calls: int, chance: random.Random) -> None:
        drawing = Drawing(self.things, chance)
        for _ in range(calls):
            tool = chance.choice(self._tools)
            await self.call(who, tool.name, drawing.arguments(tool.name, self._inputs[tool.name]))

    async def call(self, who: Who, tool: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """One call, its decisions and its answer checked; what is wrong with it is a line of the tally's faults."""
        decided: Decided = []
        _DECIDED.set(decided)
        read = who.sessions and any(self._read[session] for session in who.sessions)
        status, answer = await self._ask(who, tool, arguments)
        tally = self.tally
        tally.calls += 1
        tally.tools[tool] += 1
        wrong = [f"HTTP {status}"] * (status != 200)
        wrong += self._judge(tool, decided, answer, read=bool(read))
        result = answer.get("result", {})
        if result.get("_meta", {}).get(OUTSIDE_META) and who.sessions:
            self._read[who.sessions[0]] = True
        self.things.hear(result.get("structuredContent"))
        tally.faults += [f"{who.name} {tool} {json.dumps(arguments)[:500]}: {words}" for words in wrong]
        return result

    def _judge(self, tool: str, decided: Decided, answer: Mapping[str, Any], *, read: bool) -> list[str]:
        result: Any = answer.get("result")
        if result is None:
            return [f"no result: {json.dumps(answer)[:300]}"]
        if result.get("resultType") == "input_required":
            return []
        structured: Any = result.get("structuredContent")
        error: Any = structured.get("error") if result.get("isError") and structured else None
        code = "ok" if error is None else error["code"]
        self.tally.codes[code] += 1
        if error is not None and code == "rate_limited":
            self.tally.limits[re.sub(r"\d+", "#", str(error["message"]))] += 1
        wrong = self._about_form(tool, structured, error)
        verdict = None
        for question, decision in decided:
            if (operation := TOOLS.get(question.action)) is None:
                continue  # a prompt or a resource, by way of the call
            found, expected = outcome(decision), oracle(question, operation)
            if found != expected:
                wrong.append(f"{question} is {found}, and not {expected}")
            if question.action == tool:
                verdict = found
            if read and not question.tainted:
                wrong.append("what it read does not taint it")
        if verdict is not None:
            self.tally.reached += 1
            self.tally.verdicts[verdict[0]] += 1
        inside = any(outcome(decision)[0] == "Deny" for question, decision in decided if question.action != tool)
        return wrong + _about_verdict(None if verdict is None else verdict[0], code, inside=inside)

    def _about_form(self, tool: str, structured: Any, error: Mapping[str, Any] | None) -> list[str]:
        if error is None:
            found: Any = self._results[tool].iter_errors(structured)  # pyright: ignore[reportUnknownMemberType]
            return [f"its result is none: {fault.message[:300]}" for fault in found]
        found: Any = self._errors[tool].iter_errors(structured)  # pyright: ignore[reportUnknownMemberType]
        wrong = [f"its error is none: {fault.message[:300]}" for fault in found]
        if error["code"] == "internal":
            wrong.append(f"internal: {error}")
        if not error.get("next_step"):
            wrong.append(f"no next step: {error}")
        return wrong

    async def _ask(self, who: Who, tool: str, arguments: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """One POST to /mcp, in this process."""
        headers = modern(who.token, "tools/call", tool) | {"accept": "application/json"}
        body = json.dumps(request("tools/call", {"name": tool, "arguments": arguments})).encode()
        return await post(self._front, self._host, headers, body)


def _about_verdict(verdict: str | None, code: str, *, inside: bool) -> list[str]:
    """What a client is told must be what was decided; `inside` a call that may run another may have been refused."""
    allowed = {
        None: code not in {"ok", "denied", *_ASKED},
        "Deny": code == "denied",
        "Ask": code not in {"ok", "denied"},
        "Allow": code not in _ASKED and (code != "denied" or inside),
    }
    return [] if allowed[verdict] else [f"decided {verdict}, told {code}"]


async def post(front: Front, host: bytes, headers: Mapping[str, str], body: bytes) -> tuple[int, dict[str, Any]]:
    """One POST to the front as uvicorn would bring it."""
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "path": "/mcp",
        "query_string": b"",
        "http_version": "1.1",
        "headers": [(b"host", host), (b"content-length", b"%d" % len(body)), *pairs],
    }
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    status, parts = 0, bytearray()

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()
        raise AssertionError("nobody leaves")

    async def send(message: Mapping[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)
        parts.extend(message.get("body", b""))

    await front(scope, receive, send)
    return status, json.loads(bytes(parts))


def told(tally: Tally, tools: Collection[str]) -> str:
    """The tally in a line."""
    missing = set(tools) - set(tally.tools)
    what = f"{tally.calls} calls, {tally.reached} decided {dict(tally.verdicts)}, {dict(tally.codes)}"
    return f"{what}; limits: {dict(tally.limits)}; not called: {missing}"
