"""Owns spans: how long each part of one request took, in every room and process it goes through. Nothing until a tracer is installed."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, MutableMapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import Token
from types import TracebackType
from typing import Self

from opentelemetry import context, trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from body_broker.errors import BodyBrokerError

Value = str | int | float | bool
TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
"""Where a trace's place is told: HTTP headers and, of MCP messages, keys of `_meta`."""

_W3C = (
    TraceContextTextMapPropagator()
)  # never baggage: nothing of a client's goes on to engines but where it is in a trace
_ELSEWHERE = nullcontext()
_tracer: trace.Tracer | None = None


class Span:
    """A part of a request, for `with`; this one records nothing."""

    __slots__ = ()

    def note(self, **attributes: Value) -> None:
        """Say more of it: names and numbers of our own making, never a word of a prompt, an answer or a tool's."""

    def fault(self, kind: str) -> None:
        """It went wrong, in one word."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return


_NOTHING = Span()


class _Recorded(Span):
    """One that a tracer records. An exception is told by its code or its class, never by its text."""

    __slots__ = ("_attributes", "_faulted", "_name", "_span", "_token", "_tracer")

    def __init__(self, tracer: trace.Tracer, name: str, attributes: dict[str, Value]) -> None:
        self._tracer, self._name, self._attributes = tracer, name, attributes
        self._span: trace.Span = trace.INVALID_SPAN
        self._token: Token[context.Context] | None = None
        self._faulted = False

    def note(self, **attributes: Value) -> None:
        self._span.set_attributes(attributes)

    def fault(self, kind: str) -> None:
        self._faulted = True
        self._span.set_attribute("error.type", kind)
        self._span.set_status(trace.StatusCode.ERROR)

    def __enter__(self) -> Self:
        self._span = self._tracer.start_span(self._name, attributes=self._attributes)
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


def span(name: str, **attributes: Value) -> Span:
    """A part of the request that this task works on; `with` ends it.

    Args:
        name: Fixed, of our own making.
        attributes: As `Span.note` has them.
    """
    return _NOTHING if _tracer is None else _Recorded(_tracer, name, attributes)


def on() -> bool:
    """Whether anything is recorded."""
    return _tracer is not None


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
    if _tracer is not None:
        _W3C.inject(headers)


@contextmanager
def _within(place: context.Context) -> Generator[None]:
    token = context.attach(place)
    try:
        yield
    finally:
        context.detach(token)


@contextmanager
def installed(tracer: trace.Tracer) -> Generator[None]:
    """Spans of this process are recorded by this tracer; on the way out by whatever recorded them before."""
    global _tracer  # noqa: PLW0603  # one for the process: whoever opens a span anywhere is not handed a tracer through every call
    before, _tracer = _tracer, tracer
    try:
        yield
    finally:
        _tracer = before
