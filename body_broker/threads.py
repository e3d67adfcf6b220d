"""Owns threads for calls that block and may hang: few at a time, and none that a process which ends waits for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from body_broker.errors import Draining


class Threads:
    """Runs what blocks in daemon threads of its own: an executor's would hold the process until they have ended.

    A call that is given up leaves its thread at work, and the thread keeps its place until it ends.

    Args:
        most: How many there are at a time; who comes then waits.
        name: Of its threads, and of whom they ask.
    """

    def __init__(self, most: int, *, name: str = "AWS") -> None:
        self._places, self._name = asyncio.Semaphore(most), name
        self._closed = False

    async def run(self, function: Callable[..., Any], *arguments: object) -> Any:  # what the function gives
        """What the function gives, called in a thread.

        Raises:
            Draining: They are closed.
        """
        await self._places.acquire()
        if self._closed:
            self._places.release()
            raise Draining(f"This hub is stopping and asks {self._name} nothing more.")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()

        def work() -> None:
            try:
                settle = partial(_give, answer, function(*arguments))
            except BaseException as error:  # noqa: BLE001 - who waits is told, whatever it is
                settle = partial(_fail, answer, error)
            with suppress(RuntimeError):  # the loop has ended meanwhile, and nobody waits
                loop.call_soon_threadsafe(self._end, settle)

        try:
            threading.Thread(target=work, name=self._name, daemon=True).start()
        except BaseException:
            self._places.release()
            raise
        return await answer

    def close(self) -> None:
        """Begin nothing more, not even for those who wait for a place; what is at work is not waited for."""
        self._closed = True

    def _end(self, settle: Callable[[], None]) -> None:
        self._places.release()
        settle()


def _give(answer: asyncio.Future[Any], found: object) -> None:
    if not answer.done():  # else the call was given up
        answer.set_result(found)


def _fail(answer: asyncio.Future[Any], error: BaseException) -> None:
    if not answer.done():
        answer.set_exception(error)
