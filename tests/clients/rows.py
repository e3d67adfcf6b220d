"""Two rows that the clients' tests need beside the product's own: one that reports progress, one that goes on until it is cancelled."""

from __future__ import annotations

import asyncio

from body_broker.calls import Arguments, Call, Result, Room, Tool

STEPS = 3


class Nothing(Arguments):
    """No arguments."""


class Counted(Result):
    """How far it came."""

    steps: int


async def count(_arguments: Nothing, call: Call, _services: object) -> Counted:
    """Reports each of its steps."""
    for step in range(1, STEPS + 1):
        await call.progress(step, STEPS, f"step {step}")
    return Counted(steps=STEPS)


async def linger(_arguments: Nothing, call: Call, _services: object) -> Counted:
    """Says that it has begun, and never ends."""
    await call.progress(0, None, "begun")
    await asyncio.Event().wait()
    return Counted(steps=0)


ROOM = Room(
    name="clients",
    title="Clients",
    description="Rows of the clients' tests.",
    tools=(
        Tool(
            name="cl_count",
            run=count,
            group="own",
            title="Count",
            description="Counts and reports it.",
            reports_progress=True,
        ),
        Tool(
            name="cl_linger",
            run=linger,
            group="own",
            title="Linger",
            description="Lingers until it is cancelled.",
            reports_progress=True,
        ),
    ),
)
