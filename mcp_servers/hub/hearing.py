"""Owns what is said before a call's result is whole: text from outside leaves only once the asker's session has its taint."""

from __future__ import annotations

from typing import Any

from body_broker.calls import Call, Caller, Hear
from mcp_servers.hub.sessions import Sessions
from tiers.model import Told


def guarded(hear: Hear | None, sessions: Sessions, caller: Caller, operation: str) -> Hear | None:
    """The same hearer, behind step 8's rule for whole answers.

    Args:
        hear: The client's; None where it does not listen.
        sessions: Receive the taint.
        caller: Whose session reads it.
        operation: What says it.
    """
    if hear is None:
        return None
    tainted = False

    async def say(said: Any, *, outside: bool) -> None:  # what each operation says is its own
        nonlocal tainted
        if outside and not tainted:
            await sessions.taint(caller, operation)
            tainted = True
        await hear(said, outside=outside)

    return say


class CallListener:
    """Who called, as the tiers know listeners: hears what is told, and gets progress in words of ours where the client wants it."""

    def __init__(self, call: Call) -> None:
        self._call, self._steps = call, 0

    @property
    def restarts(self) -> bool:
        """Whether pieces may be taken back; who hears none has none to take back."""
        return self._call.hear is None or self._call.restarts

    async def __call__(self, told: Told) -> None:
        """Hear one thing."""
        if told.kind not in {"text", "restart"}:
            self._steps += 1
            await self._call.progress(self._steps, None, f"{told.kind.replace('_', ' ')}: {told.text}")
        if self._call.hear is not None:
            await self._call.hear(told, outside=told.outside)
