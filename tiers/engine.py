"""Owns one engine: its lanes, its breaker, how fast it was lately, and one request to it from begin to end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import aiohttp

from body_broker.errors import Unavailable
from tiers.answers import Answer
from tiers.asked import Asked
from tiers.breaker import Entry, TierCircuitBreaker
from tiers.catalogue import EngineSpec
from tiers.counts import Counts
from tiers.deadline import Deadline
from tiers.faults import TRANSIENT, EngineFault
from tiers.lanes import Lane, Stay, moved
from tiers.wire.base import Ask, Completion, Piece
from tiers.wire.connection import OK, Connection, answer_bytes_max, bounded, not_connected
from tiers.wire.dialects import dialect_of
from tiers.wire.listed import context_in, names_in
from tiers.wire.sse import SseParser

BACKGROUND_BELOW = 0.3
"""Urgency under which a request waits in the background lane."""
_PROBE_S = 2.0
_NOT_FOUND = 404
_LAST_S = 0.05
_NO_MONEY_S = 300.0
_KNOWN_S = 5.0
_HEARD_S = 10.0
"""How long whoever hears may take for one piece."""
_LATE = 8.0
"""Times as long as it usually takes to begin, and an engine that was given no longer is silent."""

Hear = Callable[[Piece], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Health:
    """What a probe found: whether it is up, how long it took, and what is wrong in a word of `faults.Reason`."""

    up: bool
    seconds: float
    detail: str = "ok"


@dataclass(frozen=True, slots=True)
class _Manner:
    """How one answer is listened to; `run` has what each is."""

    deadline: Deadline
    hear: Hear | None
    enough: Callable[[str], bool] | None
    partial: bool
    debt: Debt
    stay: Stay
    bytes_max: int


@dataclass(slots=True)
class Debt:
    """Whether a request may cost something: it was sent, and not refused by a status before anything was generated."""

    owed: bool = False


class _OursError(Exception):
    """Whoever listens failed: no fault of the engine's."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class _LateError(EngineFault):
    """The request's time is over, and the engine had more than it usually needs to begin."""


class Engine:
    """One engine of models.toml.

    Args:
        spec: What it is; its URL is set.
        counts: Told of every token and fault.
        clock: Seconds, for measuring and for its breaker; deadlines are the event loop's.

    Attributes:
        breaker: Closed while it answers.
        lane, background: Where requests wait for it; the second for those with little urgency, so that neither waits for the other here.
        ttft_s, gap_s: To the first token and between tokens, moving averages; None before the first answer.
        measured_at: When they were last measured, by the loop's clock.
        context_tokens: As models.toml has it, or as the engine says of a model that models.toml says nothing of.
        asks_context: Whether it is still to be asked for that.
    """

    def __init__(self, spec: EngineSpec, counts: Counts, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.spec, self._counts, self._clock = spec, counts, clock
        self._dialect = dialect_of(spec.dialect)
        self._connection = Connection(spec, self._dialect)
        self.breaker = TierCircuitBreaker(spec.failure_threshold, spec.breaker_s, clock=clock)
        counts.breaker(spec.name, lambda: self.breaker.state)
        self.lane = Lane(spec.name, width=spec.concurrency, queue_max=spec.queue, counts=counts)
        self.background = Lane(f"{spec.name}-background", width=spec.background, queue_max=spec.queue, counts=counts)
        self.ttft_s: float | None = None
        self.gap_s: float | None = None
        self.measured_at = 0.0
        self._model = spec.adapter or spec.model
        self.context_tokens = spec.context_tokens
        self.asks_context = not spec.context_known and spec.dialect != "sagemaker"  # which cannot be asked for it

    @property
    def in_flight(self) -> int:
        """Requests that it works on."""
        return self.lane.busy + self.background.busy

    def eta_s(self, tokens: int, lane: Lane) -> float:
        """How long an answer of so many tokens is likely to take from now, by way of this lane of its; 0 while nothing is known."""
        return lane.wait_s() + (self.ttft_s or 0.0) + (self.gap_s or 0.0) * tokens

    def is_known(self) -> bool:
        """Whether it was measured a moment ago; without that a slow answer, such as its first, would keep it from being asked for good."""
        return asyncio.get_running_loop().time() - self.measured_at < _KNOWN_S

    async def model(self, deadline: Deadline | None = None) -> str:
        """What it calls its model: as models.toml says, else the only one that it serves, asked once.

        Args:
            deadline: Of the request that it is asked for. Not to say it is as bad as not to answer.

        Raises:
            EngineFault: It cannot be asked, or serves several (`rejected`).
        """
        if self._model is None:
            entry = self._entered()
            try:
                self._model = await self._only_model(deadline or Deadline.after(_PROBE_S))
            except EngineFault as fault:
                self._failed(fault, entry)
                raise
            finally:
                self.breaker.left(entry)
        return self._model

    async def _only_model(self, deadline: Deadline) -> str:
        try:
            names = await self.models(deadline.within(min(self.spec.ttft_s, _PROBE_S)))
        except EngineFault as fault:
            if fault.reason == "silent" and deadline.passed:
                raise EngineFault("deadline") from fault
            raise
        if len(names) != 1:
            raise EngineFault("rejected")
        return names[0]

    async def learn_context(self, deadline: Deadline) -> bool:
        """Whether its context is known to be another than was believed; it is asked once, and only where models.toml does not say.

        Raises:
            EngineFault: It cannot be asked, or serves several models of which none was named.
        """
        before = self.context_tokens
        if self.asks_context:
            await self.model(deadline)  # one that names no model is asked for its list here
        if self.asks_context:
            await self.models(deadline.within(_PROBE_S))
        return self.context_tokens != before

    async def models(self, deadline: Deadline) -> tuple[str, ...]:
        """What it lists as its models, whichever of them it is asked for here.

        Raises:
            EngineFault: It cannot be asked.
        """
        status, body = await self._connection.get(self._dialect.models_path, deadline)
        if status != OK:
            raise self._dialect.fault(status, {}, body)
        names = names_in(body)
        if self.asks_context:
            self.asks_context = False
            self.context_tokens = context_in(body, self._model) or self.context_tokens
        return names

    async def run(
        self,
        ask: Ask,
        deadline: Deadline,
        hear: Hear | None = None,
        *,
        enough: Callable[[str], bool] | None = None,
        partial: bool = False,
        debt: Debt | None = None,
    ) -> Completion:
        """One answer, whole.

        Args:
            ask: What is asked.
            deadline: When it must be there.
            hear: Hears each piece as it comes; the engine is not read meanwhile, and is not blamed for the time. Ten seconds at most.
            enough: Says of the text so far that no more is needed: the connection is closed then, and the finish is `grammar`.
            partial: Whether text that is there at the deadline is an answer, whose finish is `deadline`.
            debt: Says whether the request may cost something, however this ends.

        Raises:
            EngineFault: There is no whole answer.
            Unavailable: Whoever hears took nothing for too long.
        """
        lane = self.background if ask.urgency < BACKGROUND_BELOW else self.lane
        if not self.breaker.allows():
            raise EngineFault("open")
        try:
            async with lane.entered(deadline, ask.urgency) as stay:
                entry = self._entered()  # it may have opened while this one waited
                bytes_max = answer_bytes_max(ask.max_tokens)
                manner = _Manner(deadline, hear, enough, partial, debt or Debt(), stay, bytes_max)
                with Asked(self.spec, ask, self._counts) as asked:
                    return asked.whole(await self._judged(ask, manner, entry))
        except _OursError as ours:
            raise ours.error from None

    def _entered(self) -> Entry:
        if (entry := self.breaker.enter()) is None:
            raise EngineFault("open")
        return entry

    async def _judged(self, ask: Ask, manner: _Manner, entry: Entry) -> Completion:
        """An answer, of whose coming about the breaker is told."""
        try:
            found = await self._answer(ask, manner)
        except EngineFault as fault:
            self._failed(fault, entry)
            raise
        except BaseException:
            self.breaker.left(entry)
            raise
        self.breaker.succeeded(entry)
        return found

    def _failed(self, fault: EngineFault, entry: Entry) -> None:
        if fault.reason == "budget":
            self.breaker.failed(entry, for_s=fault.retry_after_s or _NO_MONEY_S)
        elif fault.reason in TRANSIENT or isinstance(fault, _LateError):
            self.breaker.failed(entry, for_s=fault.retry_after_s)
        else:
            self.breaker.left(entry)

    async def _answer(self, ask: Ask, manner: _Manner) -> Completion:
        began, answer, deadline = self._clock(), Answer(), manner.deadline
        prepared = self._dialect.ask(ask)
        timer = asyncio.timeout_at(deadline.within(self.spec.ttft_s).at)
        try:
            manner.debt.owed = True
            async with timer, self._connection.asked(prepared) as response:
                if response.status != OK:
                    timer.reschedule(None)
                    raise await self._refusal(response, manner)
                if response.content_type == "text/event-stream":
                    await self._stream(response, answer, timer, manner)
                else:
                    await self._whole(response, answer, timer, manner)
        except TimeoutError as error:
            if manner.stay.is_away and timer.when() != deadline.at:
                raise _OursError(_not_taken()) from error
            # A timer may come a moment before its time: what it was set to is what it stands for.
            if not answer.ended and not (manner.partial and answer.can_stand and timer.when() == deadline.at):
                raise self._late(answer, began, over=timer.when() == deadline.at) from error
            if not answer.ended:
                answer.end("deadline")
        except aiohttp.ClientConnectorError as error:
            manner.debt.owed = False
            raise not_connected(error) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if not answer.ended:
                raise EngineFault("reset" if answer.first_at is None else "cut") from error
        return self._measured(answer.whole(ask, began, self._clock()), answer)

    async def _refusal(self, response: aiohttp.ClientResponse, manner: _Manner) -> EngineFault:
        if response.status == _NOT_FOUND:
            self._model = self.spec.adapter or self.spec.model  # it serves another one by now
            self.asks_context = not self.spec.context_known
        fault = await self._connection.refusal(response, manner.deadline)
        # Where it broke inside, nobody knows how far it had come; whoever refuses a prompt for what it says has read it.
        manner.debt.owed = fault.reason in {"failed", "withheld"}
        return fault

    def _late(self, answer: Answer, began: float, *, over: bool) -> EngineFault:
        if not over:
            return EngineFault("silent" if answer.first_at is None else "stalled")
        most_s = self.spec.ttft_s / 2 if self.ttft_s is None else min(self.spec.ttft_s, _LATE * self.ttft_s)
        if answer.first_at is None and self._clock() - began >= most_s:
            return _LateError("deadline")
        return EngineFault("deadline")

    async def _whole(
        self, response: aiohttp.ClientResponse, answer: Answer, timer: asyncio.Timeout, manner: _Manner
    ) -> None:
        timer.reschedule(manner.deadline.at)
        reader = self._dialect.reader()
        piece = reader.whole(await bounded(response, manner.bytes_max))
        answer.ended = reader.ended
        if answer.take(piece, self._clock()) and manner.hear is not None:
            await self._tell(piece, manner, timer)

    async def _stream(
        self, response: aiohttp.ClientResponse, answer: Answer, timer: asyncio.Timeout, manner: _Manner
    ) -> None:
        now, parser, size = asyncio.get_running_loop().time, SseParser(), 0
        reader, ends_at = self._dialect.reader(), manner.deadline.at
        async for data in response.content.iter_any():
            size += len(data)
            if size > manner.bytes_max:
                raise EngineFault("malformed")
            came = False
            for name, event in parser.feed(data):
                piece = reader.event(name, event)
                if piece is None or not self._taken(piece, answer, manner):
                    continue
                came = True
                if manner.hear is not None:
                    await self._tell(piece, manner, timer)
                if manner.enough is not None and _is_enough(manner.enough, answer):
                    answer.end("grammar")
                    response.close()
                    return
            answer.ended = reader.ended
            if response.content.at_eof():
                return
            if answer.ended:
                # After its own end nothing more comes but the end of the connection's answer, which lets it be used again.
                timer.reschedule(min(ends_at, now() + _LAST_S))
            elif came:
                timer.reschedule(min(ends_at, now() + self.spec.stall_s))

    async def _tell(self, piece: Piece, manner: _Manner, timer: asyncio.Timeout) -> None:
        """Whoever hears may be slow, and the engine is not to blame; who takes nothing at all does not keep its place for long."""
        assert manner.hear is not None, "somebody hears"
        stay, left_at = manner.stay, self._clock()
        timer.reschedule(manner.deadline.within(_HEARD_S).at)
        stay.is_away = True
        try:
            await manner.hear(piece)
        except Exception as error:
            raise _OursError(error) from error
        finally:
            stay.away_s += self._clock() - left_at
        stay.is_away = False

    def _taken(self, piece: Piece, answer: Answer, manner: _Manner) -> bool:
        """Add a piece, and count the time between two that hold a token."""
        is_first, before = answer.first_at is None, answer.last_at
        if not answer.take(piece, self._clock() - manner.stay.away_s):
            return False
        if not is_first:
            self._counts.token_gap(self.spec.tier, self.spec.name, answer.last_at - before)
        return True

    def _measured(self, found: Completion, answer: Answer) -> Completion:
        tier, name = self.spec.tier, self.spec.name
        self._counts.first_token(tier, name, found.ttft_s)
        self._counts.tokens(tier, name, found.usage)
        self.ttft_s, self.measured_at = moved(self.ttft_s, found.ttft_s), asyncio.get_running_loop().time()
        if (gap_s := answer.gap_s) is not None:
            self.gap_s = moved(self.gap_s, gap_s)
        return found

    async def probe(self) -> Health:
        """Whether it serves, asked now."""
        now = asyncio.get_running_loop().time
        began = now()
        deadline, dialect = Deadline.after(_PROBE_S), self._dialect
        try:
            status, body = await self._connection.get(dialect.health_path, deadline)
            if status == _NOT_FOUND:  # OpenAI's API has no path for it
                status, body = await self._connection.get(dialect.models_path, deadline)
        except EngineFault as fault:
            return Health(up=False, seconds=now() - began, detail=fault.reason)
        if status != OK:
            return Health(up=False, seconds=now() - began, detail=self._dialect.fault(status, {}, body).reason)
        return Health(up=True, seconds=now() - began)

    async def close(self) -> None:
        """Close its connections."""
        await self._connection.close()


def _not_taken() -> Unavailable:
    return Unavailable("Nobody took the answer.", next_step="Read it as it comes, or ask for it in one piece.")


def _is_enough(enough: Callable[[str], bool], answer: Answer) -> bool:
    try:
        return enough("".join(answer.text))
    except Exception as error:
        raise _OursError(error) from error
