"""Owns how a row of the catalogue is read: pages of AWS cut to pages of ours, names described, fields picked and redacted.

Everything here blocks, and is called in threads. Imported with aws.py, on first use.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import jmespath

from body_broker.calls import Json
from mcp_servers.admin import redaction
from mcp_servers.admin.catalogue.row import Detail, Operation, Plan, Row
from mcp_servers.admin.faults import absent, told
from mcp_servers.admin.query import Position
from mcp_servers.admin.roles import Grant

CALLS_MAX = 10
"""How often one query asks AWS for a further page before it answers with what it has, and a cursor."""
SECONDS_MAX = 20.0
"""After how long it asks for no further page."""


@dataclass(frozen=True, slots=True)
class Page:
    """What was found, and where to read on; None where that was all."""

    items: list[dict[str, Json]]
    after: Position | None


@dataclass(frozen=True, slots=True)
class Reader:
    """One row, read by one role.

    Attributes:
        client: boto3's, of the row's service.
        row: What is read.
        grant: Whose role.
    """

    client: Any
    row: Row
    grant: Grant

    def read(self, plan: Plan, *, start: Position, limit: int) -> Page:
        """Up to `limit` things from a position on.

        Raises:
            NotFound: Nothing is called so.
            BodyBrokerError: AWS refuses or fails; see faults.py.
        """
        if plan.operation is None:
            found = self._shown(plan.names, plan)
            if not found:
                raise absent()
            return Page(found, None)
        page = self._pages(plan.operation, plan, start, limit)
        if not page.items and (plan.single or plan.exact is not None):
            raise absent()
        return page

    def _pages(self, operation: Operation, plan: Plan, start: Position, limit: int) -> Page:
        items: list[dict[str, Json]] = []
        token, skip = start
        until = time.monotonic() + SECONDS_MAX
        for _ in range(CALLS_MAX):
            answer = self._call(operation, {**plan.params, **_paging(operation, plan, token, limit)})
            found = cast("list[Any]", _compiled(operation.items).search(answer) or [])
            fresh = found[skip:]
            taken = fresh if plan.exact else fresh[: limit - len(items)]
            shown = self._shown(taken, plan)
            items += [one for one in shown if plan.exact in (None, one.get("id"))]
            if len(taken) < len(fresh):
                return Page(items, Position(token, skip + len(taken)))
            skip = max(0, skip - len(found))
            token = None if plan.single else _next(operation, answer)
            if token is None or (plan.exact and items):
                return Page(items, None)
            if len(items) >= limit or time.monotonic() > until:
                break
        return Page(items, Position(token, skip))

    def _shown(self, found: Sequence[Any], plan: Plan) -> list[dict[str, Json]]:  # as AWS has them
        things = found if self.row.detail is None else list(self._described(self.row.detail, found, plan.around))
        return [_item(self.row, thing) for thing in things]

    def _described(self, detail: Detail, names: Sequence[str], around: Mapping[str, Json]) -> Iterator[Any]:
        step = detail.at_once or 1
        for first in range(0, len(names), step):
            some = list(names[first : first + step])
            answer = self._call(detail.operation, {**around, detail.param: some if detail.at_once else some[0]})
            yield from _compiled(detail.operation.items).search(answer) or []

    def _call(self, operation: Operation, params: Mapping[str, Json]) -> Any:  # botocore's answer
        try:
            return getattr(self.client, operation.method)(**operation.params, **params)
        except Exception as error:
            raise told(error, action=operation.action, grant=self.grant) from error


def _paging(operation: Operation, plan: Plan, token: str | None, limit: int) -> dict[str, Json]:
    """EC2 takes no size beside a list of ids; nobody needs one for a single thing."""
    found: dict[str, Json] = {}
    if operation.size and not plan.single:
        name, least, most = operation.size
        found[name] = max(least, min(most, limit))
    if operation.token and token is not None:
        found[operation.token[0]] = token
    return found


def _next(operation: Operation, answer: Any) -> str | None:  # botocore's answer
    return (answer.get(operation.token[1]) or None) if operation.token else None


def _item(row: Row, thing: Any) -> dict[str, Json]:  # as AWS has it
    fields = {name: _compiled(path).search(thing) for name, path in row.fields.items()}
    return redaction.item(fields, _compiled(row.tags).search(thing) if row.tags else None)


@cache
def _compiled(path: str) -> Any:  # jmespath has no types
    untyped: Any = jmespath
    return untyped.compile(path)
