"""Owns the loop of a model and the hub's tools: asked, called, told, asked again, within one deadline and a few rounds."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from types import MappingProxyType
from typing import Any, Literal

from body_broker.calls import Json
from body_broker.errors import BadInput, Unavailable
from body_broker.text import clean
from tiers.chain import Candidate, Chain, Course, Exhausted, Interrupted, Outcome
from tiers.counts import Counts
from tiers.deadline import Deadline
from tiers.disarming import disarmed
from tiers.engine import Engine
from tiers.faults import EngineFault
from tiers.hubtools import Called, HubTool, HubTools
from tiers.model import Asker, Fallback, InferenceRequest, Message, Tier, Told, ToolCall, ToolUse, Usage
from tiers.toolcalls import CALLS_MAX, REPEATED, Reading, Ready, Telling, Unfit
from tiers.voice import BETWEEN, Voice
from tiers.wire.base import Ask, Completion

Fixed = Mapping[str, Mapping[str, Json]]
_NOTHING_FIXED: Fixed = MappingProxyType({})
ROUNDS_MAX = 4
"""How often tools may be called before the model must answer."""
TOOLS_SHARE = 0.5
"""The part of what is left of the deadline that the tools of one round may take, all of them together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopOutcome:
    """What a loop came to.

    Attributes:
        outcome: Of all rounds together: the text of each that had one, usage and money added up, every fallback. Its completion's
            `calls` are only those of the client's own offers (finish `tools`), its `ttft_s` is from the request to the first text.
        tools: Every call, in order.
        outside: Whether text from outside is in it, so in the answer.
        withheld: Names that the request has among its tools, and that are not shown to this asker through this tier.
    """

    outcome: Outcome
    tools: tuple[ToolUse, ...] = ()
    outside: bool = False
    withheld: tuple[str, ...] = ()


class ToolLoop:
    """Runs the tools that a model wants, for one asker at a time.

    Args:
        chain: Asks engines.
        tools: Calls them.
        counts: Takes measurements.
        groups: Names of tool groups (models.toml) and what is in them; a request's `tools` may name both.
    """

    def __init__(
        self, chain: Chain, tools: HubTools, counts: Counts, groups: Mapping[str, tuple[str, ...]] | None = None
    ) -> None:
        self._chain, self._tools, self._counts, self._groups = chain, tools, counts, groups or {}

    async def run(
        self,
        candidates: Sequence[Candidate],
        course: Course,
        *,
        asker: Asker,
        tier: Tier,
        request: InferenceRequest,
        fixed: Fixed = _NOTHING_FIXED,
    ) -> LoopOutcome:
        """An answer, with as many rounds of tools as it takes and may take.

        The listener hears `tool` (its name) before each call and `tool_done` (name and outcome) after it. An answer with a schema or
        choices is told in one piece, once it is known to hold.

        Args:
            candidates: In order; later rounds begin with the one that answered.
            course: Of the first request, with `request.offers` in it; the hub's tools are added here. What it accepts is not asked of
                answers that call tools of the hub's.
            asker: For whom.
            tier: Who calls the tools, and where it is counted.
            request: `tools` says which tools are offered; None offers none of the hub's.
            fixed: Arguments that are not the model's to say, by tool: laid over its own.

        Raises:
            BadInput: `tool_choice` wants a tool that is not offered.
            Unauthenticated: The asker's token holds no more.
            Exhausted: No engine answered.
            Interrupted: One broke off that was already being told.
        """
        offered, withheld = await self._offered(asker, tier, request, course.deadline)
        _check_choice(request, offered)
        turn = _Turn(self._chain, candidates, course, request=request, offered=offered, outside=asker.tainted)
        await turn.ask()
        while wanted := turn.wanted():
            await self._call(turn, wanted, asker, tier, fixed)
            await turn.ask()
        outcome = await turn.end()
        return LoopOutcome(outcome=outcome, tools=tuple(turn.used), outside=turn.outside, withheld=withheld)

    async def _offered(
        self, asker: Asker, tier: Tier, request: InferenceRequest, deadline: Deadline
    ) -> tuple[tuple[HubTool, ...], tuple[str, ...]]:
        """The hub's tools that the model is offered, and which of the names that were given stand for none."""
        if not request.tools or request.tool_choice == "none":
            return (), ()
        members = {name: self._groups.get(name, (name,)) for name in request.tools}
        names = {member for group in members.values() for member in group}
        try:
            shown = await self._tools.offered(asker, tier, names, deadline=deadline.share(TOOLS_SHARE))
        except Unavailable:
            if request.tool_choice != "auto":
                raise
            shown = ()  # it can still answer without them, and `withheld` says so
        theirs = {offer.name for offer in request.offers}
        there = {tool.name for tool in shown}
        offered = tuple(tool for tool in shown if tool.name not in theirs)
        return offered, tuple(name for name, group in members.items() if there.isdisjoint(group))

    async def _call(self, turn: _Turn, wanted: Sequence[Ready | Unfit], asker: Asker, tier: Tier, fixed: Fixed) -> None:
        """One round: reads side by side, then the others one after another, all within their share of the deadline."""
        share = turn.course.deadline.share(TOOLS_SHARE)

        async def made(call: Ready) -> tuple[str, Called]:
            arguments = {**call.arguments, **fixed.get(call.tool.name, {})}
            called = await self._tools.call(asker, tier, call.tool.name, arguments, deadline=share)
            return call.call.id, called

        new = [call for call in wanted if isinstance(call, Ready) and turn.is_new(call)]
        for call in new:
            await turn.tell("tool", call.tool.name)
        done = dict(await _side_by_side([made(call) for call in new if call.tool.read_only]))
        for call in new:
            if not call.tool.read_only:
                done.update([await made(call)])
        for call in wanted:
            await self._note(turn, call, done.get(call.call.id), tier)
        turn.says_what_was_left_out()

    async def _note(self, turn: _Turn, call: Ready | Unfit, called: Called | None, tier: Tier) -> None:
        """What came of one call, for the model, for whoever listens and for the counts; `HubTools` counts those that were made."""
        if isinstance(call, Ready) and called is not None:
            turn.outside = turn.outside or called.outside
            turn.add(ToolUse(call.tool.name, called.outcome, called.seconds), turn.telling.result(call, called))
            await turn.tell("tool_done", f"{call.tool.name}: {called.outcome}")
            return
        if isinstance(call, Unfit):
            use, line = ToolUse(call.name, call.outcome, 0.0), call.why
        else:
            use, line = ToolUse(call.tool.name, "repeated", 0.0), REPEATED
        self._counts.tool_used(tier, use.name, use.outcome, 0.0)
        turn.add(use, turn.telling.line(call.call, line))


class _Turn:
    """One run of the loop: what was said so far, and what may still be."""

    def __init__(
        self,
        chain: Chain,
        candidates: Sequence[Candidate],
        course: Course,
        *,
        request: InferenceRequest,
        offered: tuple[HubTool, ...],
        outside: bool,
    ) -> None:
        self._chain, self._candidates, self.course = chain, tuple(candidates), course
        self._request, self._offered, self.outside = request, offered, outside
        heard = course.listener
        self._voice = None if heard is None else Voice(heard, strips=bool(offered), whole=_structured(request))
        self._theirs = {offer.name for offer in request.offers}
        self.telling, self._reading = Telling(), Reading(offered)
        self.used: list[ToolUse] = []
        self._said: list[Message] = []
        self._outcomes: list[Outcome] = []
        self._seen: set[bytes] = set()
        self._rounds = self._left_out = 0
        self._stuck = self._spoke = False
        self._began = self._first_at = asyncio.get_running_loop().time()

    async def ask(self) -> None:
        """One answer of the first engine that gives one."""
        course = replace(
            self.course,
            make=self._make,
            listener=self._voice,
            told=None if self._voice is None else self._voice.began,
            outside=self.outside,
            accept=self._check,
            cost_ceiling=self._ceiling(),
        )
        try:
            outcome = await self._chain.run(self._candidates, course)
        except Interrupted as interrupted:
            raise self._ended(Interrupted, interrupted) from interrupted
        except Exhausted as exhausted:
            await self._take_back(exhausted)
            raise self._ended(Exhausted, exhausted) from exhausted
        self._candidates = self._candidates[self._candidates.index(outcome.candidate) :]
        self._outcomes.append(outcome)
        if not self._spoke:
            found = outcome.completion
            self._spoke = bool(found.text.strip())
            self._first_at = asyncio.get_running_loop().time() - found.seconds + found.ttft_s

    def wanted(self) -> list[Ready | Unfit]:
        """The calls of the last answer that are to be answered here; none where it is the last one."""
        completion = self._outcomes[-1].completion
        ours = self._ours(completion)
        if not ours or len(ours) < len(completion.calls) or self._is_last or completion.finish == "deadline":
            return []
        self._rounds += 1
        read = self._reading.read(ours)
        self._left_out = len(ours) - len(read)
        text = disarmed(clean(completion.text))
        self._said.append(Message(role="assistant", content=text, tool_calls=tuple(each.call for each in read)))
        if self._voice is not None:
            self._voice.next_round(completion.text)
        self._stuck = all(isinstance(each, Ready) and each.key in self._seen for each in read)
        return read

    def is_new(self, call: Ready) -> bool:
        """Whether it was not called before in this turn; it has been from now on."""
        new = call.key not in self._seen
        self._seen.add(call.key)
        return new

    def add(self, use: ToolUse, message: Message) -> None:
        """A call was made, or was not, and this is what the model is told."""
        self.used.append(use)
        self._said.append(message)

    def says_what_was_left_out(self) -> None:
        """The model is told of the calls that were too many."""
        if self._left_out:
            last = self._said[-1]
            words = f"{last.content}\n{self._left_out} more calls were not made: at most {CALLS_MAX} are at once."
            self._said[-1] = replace(last, content=words)

    async def tell(self, kind: Literal["tool", "tool_done"], text: str) -> None:
        """Whoever listens hears how it goes."""
        if self._voice is not None:
            await self._voice(Told(kind, text))

    async def end(self) -> Outcome:
        """All rounds as one outcome."""
        last, completions = self._outcomes[-1], [outcome.completion for outcome in self._outcomes]
        text = last.completion.text
        if self._offered:
            texts = [text] if _structured(self._request) else [each.text for each in completions]
            text = BETWEEN.join(stripped for each in texts if (stripped := each.lstrip()))
        if self._voice is not None:
            await self._voice.end(text, outside=self.outside)
        calls = tuple(call for call in last.completion.calls if call.name in self._theirs)
        completion = replace(
            last.completion,
            text=text,
            calls=calls,
            usage=self._usage(),
            counted=all(each.counted for each in completions),
            ttft_s=self._first_s(),
            seconds=sum(each.seconds for each in completions),
        )
        return Outcome(completion, last.candidate, self._fallbacks(None), self._cost(None), last.model)

    def _first_s(self) -> float:
        """From the request to the first text that was told, or would have been; to the last answer's beginning where none has text."""
        told_at = None if self._voice is None else self._voice.first_at
        return (self._first_at if told_at is None else told_at) - self._began

    @property
    def _is_last(self) -> bool:
        """Whether the model must answer now."""
        return self._rounds >= ROUNDS_MAX or self._stuck

    @property
    def _choice(self) -> str:
        if self._rounds == 0:
            return self._request.tool_choice
        return "none" if self._is_last else "auto"

    def _make(self, engine: Engine, model: str) -> Ask:
        ask = self.course.make(engine, model)
        if not self._offered and not self._said:
            return ask
        return replace(
            ask,
            messages=(*ask.messages, *self._said),
            offers=(*ask.offers, *self._offered),
            tool_choice=self._choice,
        )

    def _check(self, completion: Completion) -> None:
        """Raise EngineFault where an answer does not hold."""
        ours = self._ours(completion)
        if ours and not self._is_last and len(ours) == len(completion.calls):
            return
        if ours and self._is_last:
            raise EngineFault("arguments")
        if not completion.calls and self._choice not in {"auto", "none"}:
            raise EngineFault("arguments")
        if self.course.accept is not None:
            self.course.accept(completion)

    def _ours(self, completion: Completion) -> list[ToolCall]:
        return [call for call in completion.calls if call.name not in self._theirs]

    def _ceiling(self) -> float | None:
        if self._request.cost_ceiling is None:
            return None
        spent = self._cost(None)
        return 0.0 if spent is None else max(0.0, self._request.cost_ceiling - spent)

    def _cost(self, ended: Exhausted | None) -> float | None:
        costs = [outcome.cost_usd for outcome in self._outcomes] + ([ended.cost_usd] if ended else [])
        known = [cost for cost in costs if cost is not None]
        return sum(known) if len(known) == len(costs) else None

    def _usage(self) -> Usage:
        return reduce(Usage.plus, (outcome.completion.usage for outcome in self._outcomes), Usage())

    def _ended(self, kind: type[Exhausted], ended: Exhausted) -> Exhausted:
        """The same of the whole turn: what ran and was used on the way was used all the same."""
        return kind(self._fallbacks(ended), self._cost(ended), tools=tuple(self.used), usage=self._usage())

    def _fallbacks(self, ended: Exhausted | None) -> tuple[Fallback, ...]:
        found = [fallback for outcome in self._outcomes for fallback in outcome.fallbacks]
        return (*found, *(ended.fallbacks if ended else ()))

    async def _take_back(self, exhausted: Exhausted) -> None:
        """What earlier rounds told is no answer."""
        if self._voice is None or not self._voice.before:
            return
        if not self._voice.restarts:
            raise self._ended(Interrupted, exhausted) from exhausted
        await self._voice.take_back(outside=self.outside)


async def _side_by_side(work: Sequence[Coroutine[Any, Any, tuple[str, Called]]]) -> list[tuple[str, Called]]:
    """What each comes to; the others are cancelled where one fails."""
    if len(work) == 1:
        return [await work[0]]
    tasks = [asyncio.create_task(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _structured(request: InferenceRequest) -> bool:
    return request.schema is not None or bool(request.choices)


def _check_choice(request: InferenceRequest, offered: Sequence[HubTool]) -> None:
    choice = request.tool_choice
    names = [*(tool.name for tool in offered), *(offer.name for offer in request.offers)]
    if choice in {"auto", "none"} or choice in names or (choice == "required" and names):
        return
    raise BadInput(
        "tool_choice wants a tool that is not among those offered here.",
        next_step=f"The tools here are: {', '.join(names) or 'none'}. `tools` says which are wanted; a tier is shown those alone that it"
        " and whoever asks may call.",
        details={"problems": ["tool_choice: not offered"]},
    )
