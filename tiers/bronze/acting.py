"""Owns the calls of tools that a job's models want: read, recorded, made once, and what came of those that people were asked for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

import orjson

from body_broker.calls import Json
from body_broker.errors import OutcomeUnknown, Unauthenticated, Unavailable
from body_broker.text import canonical_json
from body_broker.work.parking import Park
from body_broker.work.run import Run
from tiers.bronze.budgets import check_time
from tiers.bronze.model import Answer, Budget
from tiers.bronze.transcript import Made, ReadCall
from tiers.deadline import Deadline
from tiers.hubtools import Called, HubTool, HubTools
from tiers.model import Asker, Tier, ToolCall
from tiers.toolcalls import REPEATED, Reading, Ready, Unfit

Stands = Callable[[Run], Awaitable[Asker]]
"""For whom a job works, looked up anew; raises Unauthenticated where the login under which it was asked for was ended."""
TOOL_S = 600.0
"""How long one call may take."""
_LOOKS_AGAIN_S = 3_600.0
"""How often a job looks at a request to people whose end nobody told it of."""
_GET = "get_job"
_GOES_ON = frozenset({"waiting", "queued", "running", "unknown"})
_NOT_TOLD = frozenset({"timeout", "unavailable"})
_DONE = frozenset({"ok", "approval_pending"})
# A day after it ended, or where it was too long to be kept.
_NOT_READABLE = "It was allowed and done. What it gave cannot be read any more."


class Hands:
    """Makes a job's calls, in one run of it. The asker is looked up when something is to be done, once a run.

    Args:
        run: The job's run.
        tools: Calls the hub's tools.
        stands: Says for whom.
        names: Of the tools that may be called.
        budget: Of the job.
        until: When the job's time is over.
    """

    def __init__(
        self,
        run: Run,
        tools: Callable[[], HubTools],
        stands: Stands,
        *,
        names: Collection[str],
        budget: Budget,
        until: datetime,
    ) -> None:
        self._run, self._tools, self._stands, self._names = run, tools, stands, names
        self._budget, self._until = budget, until
        self._asker: Asker | None = None
        self._offered: dict[str, HubTool] | None = None
        self._ids: set[str] = set()
        self._done: set[bytes] = set()
        self.outside = False

    async def asker(self) -> Asker:
        """For whom the job works.

        Raises:
            Unauthenticated: The login under which it was asked for was ended.
        """
        if self._asker is None:
            self._asker = await self._stands(self._run)
        return replace(self._asker, tainted=self._asker.tainted or self.outside)

    async def offered(self) -> tuple[HubTool, ...]:
        """The tools that may be called: those of the job that the hub shows its chain."""
        if self._offered is None:
            asker = await self.asker()
            shown = await self._tools().offered(asker, Tier.BRONZE, self._names) if self._names else ()
            self._offered = {tool.name: tool for tool in shown}
        return tuple(self._offered.values())

    async def read(self, turn: int, answer: Answer) -> list[ReadCall]:
        """The calls of an answer, as they were read when it came."""

        async def effect() -> Json:
            read, seen = Reading(await self.offered()).read(answer.calls), set(self._done)
            return [self._as_read(each, seen).body() for each in read]

        found = [ReadCall.parse(each) for each in await self._run.step(f"read {turn}", effect)]
        calls = [replace(each, call=self._own(each.call, turn, place)) for place, each in enumerate(found, 1)]
        self._ids.update(each.call.id for each in calls)
        return calls

    async def make(self, turn: int, place: int, call: ReadCall) -> Made:
        """What comes of a call that can be made, or came of it in an earlier run.

        Raises:
            Park: People are asked for it.
            BudgetUsedUp: The job's time was over before it was made.
            OutcomeUnknown: It may or may not have been done, and must not be done again.
            Unauthenticated: The asker's login was ended.
            Unavailable: The hub does not answer.
        """
        name = f"tool {turn}.{place}"
        known = self._run.work.steps.get(name)
        made = Made.parse(known) if known is not None else await self._made(name, f"{turn}.{place}", call.doing)
        if made.outcome == "approval_pending" and made.approval is not None:
            made = await self._came_of(f"{turn}.{place}", call.doing, made.approval)
        if made.outcome == "unauthenticated":
            raise Unauthenticated(
                "The login under which this job was asked for was ended.", next_step="Sign in, and submit it again."
            )
        if made.outcome in _DONE:
            self._done.add(_key(call.doing))
        return made

    def _as_read(self, read: Ready | Unfit, seen: set[bytes]) -> ReadCall:
        """A call as it is recorded; what changes something is not done twice because it is asked for twice in the same words."""
        if isinstance(read, Unfit):
            return ReadCall(call=read.call, counted_as=read.name, outcome=read.outcome, why=read.why)
        if not read.tool.read_only:
            if read.key in seen:
                return ReadCall(call=read.call, counted_as=read.tool.name, outcome="repeated", why=REPEATED)
            seen.add(read.key)
        return ReadCall(
            call=read.call, counted_as=read.tool.name, arguments=orjson.dumps(dict(read.arguments)).decode()
        )

    def _own(self, call: ToolCall, turn: int, place: int) -> ToolCall:
        """The call with an id that no other of the job has."""
        return replace(call, id=f"call{turn:03d}{place:02d}") if call.id in self._ids else call

    async def _made(self, name: str, place: str, call: ToolCall) -> Made:
        check_time(self._budget, self._until)  # else nobody would know what came of a call that had no time
        tool = next((each for each in await self.offered() if each.name == call.name), None)
        if tool is None:
            gone = "It is not offered here any more. Go on without it."
            return await self._kept(name, Made(outcome="unknown_tool", text=gone, characters=len(gone)))
        if tool.read_only or tool.repeatable:
            called = await self._call(call, key=None if tool.read_only else f"{self._run.id} {place}")
            if not tool.read_only and _is_in_doubt(called):
                raise Unavailable("The hub did not say what came of a tool's call.", details={"component": "tools"})
            return await self._kept(name, Made.of(called))

        async def effect() -> Json:
            try:
                called = await self._call(call)
            except Unauthenticated as error:  # refused before anything was done
                return Made(outcome=error.code, text="", characters=0).body()
            if _is_in_doubt(called):
                raise OutcomeUnknown("The hub did not say what came of it.", details={"effect": call.name})
            return Made.of(called).body()

        return Made.parse(await self._run.once(name, effect))

    async def _call(self, call: ToolCall, *, key: str | None = None) -> Called:
        arguments: dict[str, Json] = orjson.loads(call.arguments)
        return await self._tools().call(
            await self.asker(), Tier.BRONZE, call.name, arguments, deadline=self._deadline(), key=key
        )

    async def _came_of(self, place: str, call: ToolCall, approval: str) -> Made:
        """What came of a call that people were asked for, once they have decided and it has run."""
        asked, came, steps = f"asked {place}", f"came {place}", self._run.work.steps
        if came in steps:
            return Made.parse(steps[came])
        if asked not in steps:
            await self._run.step(asked, _value({"approval": approval}))
            raise _waits(call, approval)
        called = await self._tools().call(
            await self.asker(), Tier.BRONZE, _GET, {"id": approval}, deadline=self._deadline()
        )
        if called.outcome == "not_found":  # forgotten, long after it ended
            return await self._kept(came, Made.of(called))
        if called.outcome != "ok":
            raise Unavailable(
                "The hub did not say what came of a request to people.",
                details={"component": "approvals", "approval": approval},
            )
        job = called.structured
        if job.get("state") in _GOES_ON:
            raise _waits(call, approval)
        return await self._kept(came, _ended(called))

    async def _kept(self, name: str, made: Made) -> Made:
        return Made.parse(await self._run.step(name, _value(made.body())))

    def _deadline(self) -> Deadline:
        left_s = (self._until - datetime.now(UTC)).total_seconds()
        return Deadline.after(max(0.0, min(left_s, TOOL_S)))


def _ended(called: Called) -> Made:
    """What an approved call gave, or why there is none; `called` is the job that it was."""
    job, error = called.structured, called.structured.get("error")
    if job.get("state") == "succeeded":
        result = job.get("result")
        text = _NOT_READABLE if result is None else orjson.dumps(result).decode()
        return Made.of(replace(called, text=text, structured={}))
    told = cast("dict[str, Any]", error) if isinstance(error, dict) else {}
    text, code = str(told.get("message", "It was not done.")), str(told.get("code", "internal"))
    return Made.of(replace(called, text=text, outcome=code, structured={}))


def _is_in_doubt(called: Called) -> bool:
    """Whether the hub itself said nothing of what came of it: an error of its own has its form."""
    return called.outcome == OutcomeUnknown.code or (called.outcome in _NOT_TOLD and not called.structured)


def _waits(call: ToolCall, approval: str) -> Park:
    return Park(approval, wake_in_s=_LOOKS_AGAIN_S, message=f"People are asked to allow {call.name} ({approval}).")


def _key(call: ToolCall) -> bytes:
    """The same for calls that are the same, as `Ready.key` has it."""
    return call.name.encode() + b" " + canonical_json(orjson.loads(call.arguments))


def _value(value: Json) -> Callable[[], Awaitable[Json]]:
    async def effect() -> Json:
        return value

    return effect
