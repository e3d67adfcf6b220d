"""Owns spans: how long each part of one request took, in every room and process it goes through. Nothing until a tracer is installed."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Mapping, MutableMapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar, Token
from random import getrandbits, random
from types import TracebackType
from typing import Literal, Self

from opentelemetry import context, trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from body_broker.errors import BodyBrokerError

Value = str | int | float | bool | list[str]
Kind = Literal["internal", "server", "client", "consumer"]
TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
"""Where a trace's place is told: HTTP headers and, of MCP messages, keys of `_meta`."""

_W3C = (
    TraceContextTextMapPropagator()
)  # never baggage: nothing of a client's goes on to engines but where it is in a trace
_ELSEWHERE = nullcontext()
_NONE: Mapping[str, Value] = {}
_KINDS: Mapping[Kind, trace.SpanKind] = {
    "internal": trace.SpanKind.INTERNAL,
    "server": trace.SpanKind.SERVER,
    "client": trace.SpanKind.CLIENT,
    "consumer": trace.SpanKind.CONSUMER,
}
_tracer: trace.Tracer | None = None
_rate: float | None = None
_quiet: ContextVar[tuple[int, int] | None] = ContextVar("quiet", default=None)
"""Ids of the trace and span that are open here and not recorded: that was decided at the trace's first span, and costs nothing more."""


class Span:
    """A part of a request, for `with`; this one records nothing."""

    __slots__ = ()
    records = False
    """Whether anything that is noted is kept."""

    def note(self, told: Mapping[str, Value] = _NONE, /, **attributes: Value) -> None:
        """Say more of it: names and numbers of our own making, never a word of a prompt, an answer or a tool's."""

    def named(self, name: str) -> None:
        """Call it so, now that it is known what it is about."""

    def fault(self, kind: str) -> None:
        """It went wrong, in one word."""

    def excuse(self) -> None:
        """What is raised now is no fault."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return


_NOTHING = Span()


class _Recorded(Span):
    """One that a tracer records, where its trace is sampled. An exception is told by its code or its class, never by its text."""

    __slots__ = ("_attributes", "_faulted", "_kind", "_name", "_span", "_token", "_tracer")

    def __init__(self, tracer: trace.Tracer, name: str, attributes: Mapping[str, Value], kind: Kind) -> None:
        self._tracer, self._name, self._attributes = tracer, name, attributes
        self._kind = _KINDS[kind]
        self._span: trace.Span = trace.INVALID_SPAN
        self._token: Token[context.Context] | None = None
        self._faulted = False

    @property
    def records(self) -> bool:
        return self._span.is_recording()

    def note(self, told: Mapping[str, Value] = _NONE, /, **attributes: Value) -> None:
        if self._span.is_recording():
            self._span.set_attributes({**told, **attributes})

    def named(self, name: str) -> None:
        self._span.update_name(name)

    def fault(self, kind: str) -> None:
        self._faulted = True
        self._span.set_attribute("error.type", kind)
        self._span.set_status(trace.StatusCode.ERROR)

    def excuse(self) -> None:
        self._faulted = True

    def __enter__(self) -> Self:
        self._span = self._tracer.start_span(self._name, kind=self._kind, attributes=self._attributes)
        self._token = context.attach(trace.set_span_in_context(self._span))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._token is not None:
            context.detach(self._token)
        if isinstance(error, asyncio.CancelledError):
            self._span.set_attribute("cancelled", value=True)
        elif error is not None and not self._faulted:
            self.fault(error.code if isinstance(error, BodyBrokerError) else type(error).__name__)
        self._span.end()


class _Unsampled(Span):
    """The first one of a trace that nobody will look at: it has ids, for logs and for whoever is asked further on, and no more."""

    __slots__ = ("_ids", "_token")

    def __init__(self, trace_id: int) -> None:
        self._ids = (trace_id, getrandbits(64) | 1)
        self._token: Token[tuple[int, int] | None] | None = None

    def __enter__(self) -> Self:
        self._token = _quiet.set(self._ids)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._token is not None:
            _quiet.reset(self._token)


def span(name: str, told: Mapping[str, Value] = _NONE, /, *, kind: Kind = "internal", **attributes: Value) -> Span:
    """A part of the request that this task works on; `with` ends it.

    Args:
        name: Fixed, of our own making.
        told: As `Span.note` has them, by names with points in them.
        kind: Who begins it: ourselves, a client that asks us, we as a client of another, or work that was queued.
        attributes: The same, by plain names.
    """
    if _tracer is None or _quiet.get() is not None:
        return _NOTHING
    if _rate is not None:
        place = trace.get_current_span().get_span_context()
        if not place.is_valid:
            if random() >= _rate:  # noqa: S311 - a sample, no secret
                return _Unsampled(getrandbits(128) | 1)
        elif not place.trace_flags.sampled:
            return _Unsampled(place.trace_id)
    return _Recorded(_tracer, name, {**told, **attributes}, kind)


def store(system: str, operation: str, target: str = "") -> Span:
    """A request to a store, where it is part of something that is recorded: what loops in the background make is not.

    Args:
        system: `db.system.name`.
        operation: Of our own making, such as a command or a statement's verb; never a statement, a key or a value.
        target: The table, index or the like.
    """
    if _tracer is None or _quiet.get() is not None or not trace.get_current_span().is_recording():
        return _NOTHING
    about: dict[str, Value] = {"db.system.name": system, "db.operation.name": operation}
    if target:
        about["db.collection.name"] = target
    return _Recorded(_tracer, f"{operation} {target}" if target else operation, about, "client")


def on() -> bool:
    """Whether anything is recorded."""
    return _tracer is not None


def ids() -> tuple[str, str] | None:
    """The ids of the trace and of the span that are open here, for logs; None where there are none."""
    if _tracer is None:
        return None
    if (quiet := _quiet.get()) is not None:
        return f"{quiet[0]:032x}", f"{quiet[1]:016x}"
    place = trace.get_current_span().get_span_context()
    return (f"{place.trace_id:032x}", f"{place.span_id:016x}") if place.is_valid else None


def here() -> str | None:
    """The place in the trace where this task is, as `joined` takes it: for what goes on later, in another process."""
    carrier: dict[str, str] = {}
    carry(carrier)
    return carrier.get(TRACEPARENT)


def joined(traceparent: object, tracestate: object = None) -> AbstractContextManager[object]:
    """Spans inside belong to the trace that a client is in; one that is malformed or missing is as if there were none.

    Args:
        traceparent: As it came (W3C Trace Context).
        tracestate: The same.
    """
    if _tracer is None or not isinstance(traceparent, str):
        return _ELSEWHERE
    carrier = {TRACEPARENT: traceparent}
    if isinstance(tracestate, str):
        carrier[TRACESTATE] = tracestate
    return _within(_W3C.extract(carrier, context.get_current()))


def carry(headers: MutableMapping[str, str]) -> None:
    """Add the headers that tell the next process where in the trace it is asked; none where nothing is traced."""
    if _tracer is None:
        return
    if (quiet := _quiet.get()) is not None:
        headers[TRACEPARENT] = f"00-{quiet[0]:032x}-{quiet[1]:016x}-00"
    else:
        _W3C.inject(headers)


@contextmanager
def _within(place: context.Context) -> Generator[None]:
    token = context.attach(place)
    try:
        yield
    finally:
        context.detach(token)


@contextmanager
def installed(tracer: trace.Tracer, *, rate: float | None = None) -> Generator[None]:
    """Spans of this process are recorded by this tracer; on the way out by whatever recorded them before.

    Args:
        tracer: Records what it is given, and decides of it.
        rate: Decided here instead, at a tenth of the cost: this share of the traces that begin here, and of others those that their
            beginner records. The tracer records all it is given then.
    """
    global _tracer, _rate  # one for the process: whoever opens a span anywhere is not handed a tracer through every call
    before, _tracer, _rate = (_tracer, _rate), tracer, rate
    try:
        yield
    finally:
        _tracer, _rate = before
