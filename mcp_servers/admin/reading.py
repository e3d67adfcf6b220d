"""Owns how a row of the catalogue is read: pages of AWS cut to pages of ours, names described, fields picked and redacted.

Everything here blocks, and is called in threads. Imported with aws.py, on first use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import jmespath

from body_broker.calls import Json
from mcp_servers.admin import redaction
from mcp_servers.admin.catalogue.row import Detail, Operation, Plan, Row
from mcp_servers.admin.faults import absent, slow, told
from mcp_servers.admin.query import Deadline, Position
from mcp_servers.admin.roles import Grant

CALLS_MAX = 10
"""How often one query asks AWS for a further page before it answers with what it has, and a cursor."""


@dataclass(frozen=True, slots=True)
class Page:
    """What was found, and where to read on; None where that was all; and what was named first, then described."""

    items: list[dict[str, Json]]
    after: Position | None
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reader:
    """One row, read by one role.

    Attributes:
        client: boto3's, of the row's service.
        row: What is read.
        grant: Whose role.
        deadline: Looked at before every call of AWS.
    """

    client: Any
    row: Row
    grant: Grant
    deadline: Deadline

    def read(self, plan: Plan, *, start: Position, limit: int) -> Page:
        """Up to `limit` things from a position on.

        Raises:
            NotFound: Nothing is called so.
            Unavailable: The deadline has passed, and there is nothing to show.
            BodyBrokerError: AWS refuses or fails; see faults.py.
        """
        if plan.operation is None:
            found, seen = self._shown(plan.names, plan)
            if seen < len(plan.names):
                raise slow()
            if not found:
                raise absent()
            return Page(found, None)
        page = self._pages(plan.operation, plan, start, limit)
        if not page.items and page.after == start:
            raise slow()  # it was listed, and nothing of it described
        if not page.items and (plan.single or plan.exact is not None):
            raise absent() if page.after is None else slow()
        return page

    def _pages(self, operation: Operation, plan: Plan, start: Position, limit: int) -> Page:
        items: list[dict[str, Json]] = []
        names: list[str] = []
        token, skip = start
        for _ in range(CALLS_MAX):
            answer = self._call(operation, {**plan.params, **_paging(operation, plan, token, limit)})
            found = cast("list[Any]", _compiled(operation.items).search(answer) or [])
            fresh = found[skip:]
            shown, taken = self._shown(fresh if plan.exact else fresh[: limit - len(items)], plan)
            names += fresh[:taken] if self.row.detail else []
            items += [one for one in shown if plan.exact in (None, one.get("id"))]
            if taken < len(fresh):
                return Page(items, Position(token, skip + taken), tuple(names))
            skip = max(0, skip - len(found))
            token = None if plan.single else _next(operation, answer)
            if token is None or (plan.exact and items):
                return Page(items, None, tuple(names))
            if len(items) >= limit or self.deadline.passed():
                break
        return Page(items, Position(token, skip), tuple(names))

    def _shown(self, found: Sequence[Any], plan: Plan) -> tuple[list[dict[str, Json]], int]:  # as AWS has them
        """What is shown of these, and how many of them there was time for."""
        things, seen = found, len(found)
        if self.row.detail is not None:
            things, seen = self._described(self.row.detail, found, plan.around)
        return [_item(self.row, thing) for thing in things], seen

    def _described(
        self, detail: Detail, names: Sequence[str], around: Mapping[str, Json]
    ) -> tuple[Sequence[Any], int]:  # as AWS has them
        things: list[Any] = []
        step = detail.at_once or 1
        for first in range(0, len(names), step):
            if self.deadline.passed():
                return things, first
            some = list(names[first : first + step])
            answer = self._call(detail.operation, {**around, detail.param: some if detail.at_once else some[0]})
            things += _compiled(detail.operation.items).search(answer) or []
        return things, len(names)

    def _call(self, operation: Operation, params: Mapping[str, Json]) -> Any:  # botocore's answer
        if self.deadline.passed():
            raise slow()
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
