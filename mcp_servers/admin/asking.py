"""Owns one question to AWS: the region, the session, the reading; once more with a new session where AWS refused the old.

Everything here blocks, and is called in threads. Imports boto3 by way of aws.py: services.py imports this file on first use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from body_broker.errors import Unavailable
from mcp_servers.admin.aws import Aws, Session
from mcp_servers.admin.faults import is_stale, slow
from mcp_servers.admin.query import Answer, Deadline, Identity, Query, Who
from mcp_servers.admin.reading import Reader
from mcp_servers.admin.roles import Grant

EVERYWHERE = "global"

T = TypeVar("T")


def ask(aws: Aws, query: Query, grant: Grant, who: Who, deadline: Deadline) -> Answer:
    """A page of things, as one role sees them.

    Raises:
        BodyBrokerError: As faults.py and aws.py say.
    """
    row = query.row
    region = aws.region(row.service, query.region, everywhere=row.everywhere, partition=grant.partition)
    return _in_session(aws, grant, who, deadline, lambda session: _read(aws, query, session, region, deadline))


def identify(aws: Aws, grant: Grant, who: Who, deadline: Deadline) -> Identity:
    """Who a role's queries are to AWS.

    Raises:
        BodyBrokerError: As faults.py and aws.py say.
    """
    region = aws.region("sts", None, everywhere=False, partition=grant.partition)
    return _in_session(aws, grant, who, deadline, lambda session: _identified(aws, grant, session, region))


def _in_session(aws: Aws, grant: Grant, who: Who, deadline: Deadline, use: Callable[[Session], T]) -> T:
    session = _session(aws, grant, who, deadline)
    try:
        return use(session)
    except Unavailable as error:
        if not isinstance(error.__cause__, Exception) or not is_stale(error.__cause__):
            raise
        aws.forget(session)
        return use(_session(aws, grant, who, deadline))


def _session(aws: Aws, grant: Grant, who: Who, deadline: Deadline) -> Session:
    """The session, with time left to use it."""
    if deadline.passed():  # it waited for a thread
        raise slow()
    session = aws.session(grant, who)
    if deadline.passed():
        raise slow()
    return session


def _identified(aws: Aws, grant: Grant, session: Session, region: str) -> Identity:
    account, arn = aws.identity(session, region)
    return Identity(
        grant=grant,
        account=account,
        arn=arn,
        tags=session.tags,
        source_identity=session.source_identity,
        region=region,
        expires_at=session.expires_at,
    )


def _read(aws: Aws, query: Query, session: Session, region: str, deadline: Deadline) -> Answer:
    row = query.row
    reader = Reader(aws.client(session, row.service, region), row, session.grant, deadline)
    page = reader.read(query.plan, start=query.start, limit=query.limit)
    return Answer(
        items=page.items,
        after=page.after,
        account=session.account,
        region=EVERYWHERE if row.everywhere else region,
        names=page.names,
    )
