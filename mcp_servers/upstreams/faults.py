"""Owns what went wrong with a request to an upstream, in words of ours: whether it was done, and whether the upstream or the call is at fault."""

from __future__ import annotations

import mcp_types as t
from mcp.shared.exceptions import MCPError

from body_broker.calls import Effect
from body_broker.errors import BadInput, BodyBrokerError, NotConfigured, OutcomeUnknown, Unavailable
from mcp_servers.upstreams.model import Upstream
from mcp_servers.upstreams.wire import Asked

_RETRY_S = 2.0
_NOT_SHOWN = frozenset({401, 403})
_REFUSALS, _FAILURES = range(300, 500), range(500, 600)
_GONE = 404
# What is answered before a tool is run.
_NOT_TAKEN = frozenset({t.INVALID_PARAMS, t.METHOD_NOT_FOUND})


class IncompleteError(Exception):
    """It asks its client for something before it answers."""


class Fault(Exception):
    """What went wrong with one request.

    Args:
        error: What is told.
        counts: Whether it says that the upstream is ill.
        gone: Whether the connection, or the upstream's memory of it, is lost.
        late: Whether it did not answer in time.
    """

    def __init__(self, error: BodyBrokerError, *, counts: bool, gone: bool = False, late: bool = False) -> None:
        super().__init__(error.message)
        self.error, self.counts, self.gone, self.late = error, counts, gone, late


def fault_of(error: Exception, asked: Asked, upstream: Upstream, effect: Effect) -> Fault:
    """What an exception of the library's means.

    Args:
        error: As it was raised; its text goes nowhere.
        asked: What became of the request on the wire.
        upstream: Who was asked.
        effect: What may have been done.
    """
    code = error.error.code if isinstance(error, MCPError) else None
    return _undone(code, asked, upstream, effect) or _unclear(error, code, asked, upstream, effect)


def _undone(code: int | None, asked: Asked, upstream: Upstream, effect: Effect) -> Fault | None:
    """What it means where nothing was done, for sure; None where that is not so."""
    if asked.error is not None:
        return Fault(asked.error, counts=False)
    if asked.status in _NOT_SHOWN or code in _NOT_TAKEN:
        error = _not_shown(upstream) if asked.status in _NOT_SHOWN else _not_taken(upstream)
        return Fault(error, counts=False)
    if asked.status == _GONE and code == t.INVALID_REQUEST:
        return Fault(_away(upstream, "does not know the hub's session any more"), counts=True, gone=True)
    if asked.unsent:
        return Fault(_away(upstream, "cannot be reached"), counts=True)
    if code == t.MISSING_REQUIRED_CLIENT_CAPABILITY or (asked.status in _REFUSALS and effect != "none"):
        return Fault(_away(upstream, "refuses the call"), counts=False)
    return None


def _unclear(error: Exception, code: int | None, asked: Asked, upstream: Upstream, effect: Effect) -> Fault:
    """What it means where it may have been done."""
    if code == t.REQUEST_TIMEOUT or isinstance(error, TimeoutError):
        stuck = isinstance(error, TimeoutError) and asked.status is None  # it does not even read
        return Fault(_lost(upstream, effect, "did not answer in time"), counts=True, gone=stuck, late=True)
    known = isinstance(error, MCPError | ValueError | IncompleteError)
    if code == t.CONNECTION_CLOSED or not known or asked.status in _FAILURES:
        what = "failed, or was lost, while it was asked"
        return Fault(_lost(upstream, effect, what), counts=True, gone=asked.status is None)
    if isinstance(error, IncompleteError):
        what = "asks for more before it answers, which the hub does not give"
        return Fault(_lost(upstream, effect, what), counts=False)
    return Fault(_lost(upstream, effect, "failed, or answered what cannot be passed on"), counts=False)


def _lost(upstream: Upstream, effect: Effect, what: str) -> BodyBrokerError:
    if effect == "none":
        return _away(upstream, what)
    return OutcomeUnknown(
        f"The upstream server {upstream.name} {what}, so nobody knows whether it was done.",
        details={"effect": f"a call of {upstream.name}"},
    )


def _away(upstream: Upstream, what: str) -> Unavailable:
    return Unavailable(
        f"The upstream server {upstream.name} {what}.",
        retry_after_s=_RETRY_S,
        details={"component": f"upstream {upstream.name}"},
    )


def _not_taken(upstream: Upstream) -> BadInput:
    return BadInput(
        f"The upstream server {upstream.name} does not take this call.",
        next_step="Check the arguments against the tool's description; else do without it.",
        details={"upstream": upstream.name},
    )


def _not_shown(upstream: Upstream) -> NotConfigured:
    how = "login" if upstream.auth == "oauth" else "token"
    return NotConfigured(
        f"The upstream server {upstream.name} does not let the hub in.",
        next_step=f"Have an operator give it what it wants: `body-broker upstream {how} {upstream.name}`.",
        details={"upstream": upstream.name},
    )
