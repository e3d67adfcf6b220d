"""Owns the real OpenSearch node of tests: one process on 127.0.0.1, started, killed, started again on the same data, stopped."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from pathlib import Path

import httpx2

from tests.components import data_dir

_READY = re.compile(r"^ready (http://\S+)$")
_START_S = 120.0
_JAVA_OPTIONS = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
"""Half the time until it answers, on a machine of two cores."""


def starter() -> Path:
    """The script that starts a node."""
    return data_dir().parent / "opensearch" / "start"


class Node:
    """One node; `start` it, and `stop` it however it is.

    Args:
        data: Its folder, kept by whoever gave it.
    """

    def __init__(self, data: Path) -> None:
        self._data = data
        self.url = ""
        self._starter: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int | None:
        """The node's own process, while it lives: the starter's child."""
        if self._starter is None or self._starter.poll() is not None:
            return None
        children = Path(f"/proc/{self._starter.pid}/task/{self._starter.pid}/children").read_text("ascii").split()
        return int(children[0]) if children else None

    def start(self) -> str:
        """The URL at which it answers; a second time the same one, with what it held."""
        port = self.url.rpartition(":")[2] or "0"
        self._starter = subprocess.Popen(
            [str(starter()), "--port", port, "--data", str(self._data)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "JAVA_TOOL_OPTIONS": _JAVA_OPTIONS},  # noqa: TID251  # tests' own
        )
        assert self._starter.stdout is not None
        # A starter that hangs is killed, which ends the reading.
        guard = threading.Timer(_START_S, self._starter.kill)
        guard.start()
        line = self._starter.stdout.readline()
        guard.cancel()
        found = _READY.match(line.strip())
        assert found, f"no node came up; see {self._data}/node.log"
        self.url = found[1]
        return self.url

    def stop(self) -> None:
        """Be rid of it."""
        if self._starter is not None:
            self._starter.terminate()
            self._starter.wait(timeout=30)
            assert self._starter.stdout is not None
            self._starter.stdout.close()


async def ask(url: str, method: str, path: str, body: object = None) -> httpx2.Response:
    """What a node says to a request of the test's own."""
    async with httpx2.AsyncClient(timeout=60) as http:
        return await http.request(method, f"{url}{path}", json=body)


async def clear(url: str) -> None:
    """Delete every index of lore there is."""
    for found in (await ask(url, "GET", "/_cat/indices/lore*?format=json")).json():
        await ask(url, "DELETE", f"/{found['index']}")
