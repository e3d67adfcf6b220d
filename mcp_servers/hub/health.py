"""Owns the answer to a container's health check: `python -m mcp_servers.hub.health http://127.0.0.1:8080/readyz`, `worker` or `engine`."""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
import urllib.error
import urllib.request
from pathlib import Path

import asyncpg

from body_broker.errors import StartError
from body_broker.settings import load_settings
from body_broker.storage.postgres import LOST

_PATIENCE_S = 4.0
_SILENCE_S = 60.0
# The connection that a worker claims by: it asks for work every few seconds, and tells of its leases while it works.
# One that hangs says nothing on it, whatever else its process still does. An engine renews its lease, or asks for one.
_HEARD = """
SELECT coalesce(max(greatest(backend_start, state_change)) > clock_timestamp() - make_interval(secs => $1::float8), false)
FROM pg_stat_activity
WHERE application_name LIKE ANY ($2::text[]) AND client_addr IS NOT DISTINCT FROM inet_client_addr()
"""


_CONNECTIONS = {"worker": ["body-broker worker %"], "engine": ["body-broker engine %", "body-broker relay"]}


def main() -> None:
    """Exit code 0 where this container's process does its work, else 1 and a line that says why."""
    what = sys.argv[1] if len(sys.argv) == 2 else ""  # noqa: PLR2004 - the program and its one argument
    if what in _CONNECTIONS:
        reason = _beside(what)
    elif what.startswith(("http://127.0.0.1:", "https://127.0.0.1:")):
        reason = _hub(what)
    else:
        reason = "name the hub's /readyz on 127.0.0.1, worker, or engine"
    print(reason or "healthy")  # noqa: T201 - what `docker inspect` shows
    sys.exit(1 if reason else 0)


def _hub(url: str) -> str:
    # The certificate is for the name that clients use, not for loopback; nothing secret is sent.
    unverified = ssl.create_default_context()
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    try:
        # Without a proxy, whatever the container's environment says: it is this container that is asked for.
        direct = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=unverified)
        )
        with direct.open(url, timeout=_PATIENCE_S):
            return ""
    except urllib.error.HTTPError as error:
        return f"not ready: {error.code}"
    except OSError:
        return "no answer"


def _beside(what: str) -> str:
    file = Path("body-broker.toml")
    environ = os.environ  # noqa: TID251 - a process of its own, which is part of the hub
    try:
        settings = load_settings(environ, file if file.is_file() else None)
    except StartError as error:
        return error.message
    if settings.database_url is None:
        return f"no BODY_BROKER_DATABASE_URL: a {what} in a container of its own shares the hub's database"
    try:
        heard = asyncio.run(_heard(settings.database_url.get_secret_value(), _CONNECTIONS[what]))
    except (*LOST, asyncpg.PostgresError):
        return "the database does not answer"
    return "" if heard else f"nothing heard of the {what} for {_SILENCE_S:.0f} s"


async def _heard(database_url: str, connections: list[str]) -> bool:
    async with asyncio.timeout(_PATIENCE_S):
        connection = await asyncpg.connect(database_url)
        try:
            return await connection.fetchval(_HEARD, _SILENCE_S, connections)
        finally:
            await connection.close()


if __name__ == "__main__":
    main()
