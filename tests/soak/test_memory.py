"""A served hub is as large after 100,000 calls over HTTP as after the first 50,000: reads, writes, lists, streams and refusals."""

from __future__ import annotations

import http.client
import itertools
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.bench.load import Cell, headers_and_body, served, uss_mb

_CALLS, _PARTS, _CLIENTS = 100_000, 20, 4
_WARM_PARTS = 10
_GROWTH_MB_MAX = 2.0
"""What 50,000 calls may add: a leak of 42 bytes a call is more."""

Asked = tuple[dict[str, str], bytes, bytes]
"""Headers, body, and what stands in a right answer."""


def calls() -> int:
    """BODY_BROKER_TEST_CALLS, else all of them."""
    return int(os.environ.get("BODY_BROKER_TEST_CALLS", str(_CALLS)))  # noqa: TID251  # tests' own


def mixture(cell: Cell) -> list[Asked]:
    """One of each kind of request; the last two are refused."""
    found: list[Asked] = [
        (*headers_and_body(cell, "read"), b'"structuredContent"'),
        (*headers_and_body(cell, "write"), b'"structuredContent"'),
        (*headers_and_body(cell, "list"), b'"tools"'),
        (*headers_and_body(cell, "read", stream=True), b'"structuredContent"'),
    ]
    headers, body = headers_and_body(cell, "read")
    unknown = json.loads(body)
    unknown["params"]["name"] = "no_such_tool"
    found.append((headers | {"mcp-name": "no_such_tool"}, json.dumps(unknown).encode(), b"unknown_tool"))
    wrong = json.loads(body)
    wrong["params"]["arguments"] = {"no_such_argument": "x" * 200}
    found.append((headers, json.dumps(wrong).encode(), b"bad_input"))
    return found


def ask(cell: Cell, count: int) -> int:
    """So many requests over one connection, each answered as it should be."""
    where = urlsplit(cell.url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)
    for headers, body, wanted in itertools.islice(itertools.cycle(mixture(cell)), count):
        connection.request("POST", where.path, body, headers)
        told = connection.getresponse().read()
        assert wanted in told, told[:400]
    connection.close()
    return count


@pytest.mark.timeout(3 * 3600)
def test_a_served_hub_does_not_grow(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--soak"):
        pytest.skip("it takes minutes: poe soak")
    each = calls() // _PARTS // _CLIENTS
    with served("hub", "hub", str(tmp_path)) as cell, ThreadPoolExecutor(_CLIENTS) as clients:
        sizes: list[float] = []
        for _ in range(_PARTS):
            assert sum(clients.map(ask, [cell] * _CLIENTS, [each] * _CLIENTS)) == each * _CLIENTS
            sizes.append(round(uss_mb(cell.pid), 1))
    print(sizes, "MB after each", each * _CLIENTS)
    assert max(sizes[-3:]) - sizes[_WARM_PARTS - 1] < _GROWTH_MB_MAX, sizes
