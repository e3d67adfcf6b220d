"""Owns one question to AWS: the region, the session, the reading; once more with a new session where AWS refused the old.

Everything here blocks, and is called in threads. Imports boto3 by way of aws.py: services.py imports this file on first use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from body_broker.errors import Unavailable
from mcp_servers.admin.aws import Aws, Session
from mcp_servers.admin.faults import is_stale
from mcp_servers.admin.query import Answer, Identity, Query, Who
from mcp_servers.admin.reading import Reader
from mcp_servers.admin.roles import Grant

EVERYWHERE = "global"

T = TypeVar("T")


def ask(aws: Aws, query: Query, grant: Grant, who: Who) -> Answer:
    """A page of things, as one role sees them.

    Raises:
        BodyBrokerError: As faults.py and aws.py say.
    """
    row = query.row
    region = aws.region(row.service, query.region, everywhere=row.everywhere, partition=grant.partition)
    return _in_session(aws, grant, who, lambda session: _read(aws, query, session, region))


def identify(aws: Aws, grant: Grant, who: Who) -> Identity:
    """Who a role's queries are to AWS.

    Raises:
        BodyBrokerError: As faults.py and aws.py say.
    """
    region = aws.region("sts", None, everywhere=False, partition=grant.partition)
    return _in_session(aws, grant, who, lambda session: _identified(aws, grant, session, region))


def _in_session(aws: Aws, grant: Grant, who: Who, use: Callable[[Session], T]) -> T:
    session = aws.session(grant, who)
    try:
        return use(session)
    except Unavailable as error:
        if not isinstance(error.__cause__, Exception) or not is_stale(error.__cause__):
            raise
        aws.forget(session)
        return use(aws.session(grant, who))


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


def _read(aws: Aws, query: Query, session: Session, region: str) -> Answer:
    row = query.row
    reader = Reader(aws.client(session, row.service, region), row, session.grant)
    page = reader.read(query.plan, start=query.start, limit=query.limit)
    return Answer(
        items=page.items,
        after=page.after,
        account=session.account,
        region=EVERYWHERE if row.everywhere else region,
    )
