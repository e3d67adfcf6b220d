"""Owns the kill harness: real processes on one data directory, killed with SIGKILL at steps that were seen to be reached.

A later issue adds victims and steps, never another harness: a `Victim` is a name and how to find its process, a `Step` is
a name and a context manager that brings the product there, keeps it there while the victim is killed, and lets go on exit.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from body_broker.storage.embedded.children import before_exec
from body_broker.storage.embedded.processes import birth
from tests.components import PROJECT
from tests.waiting import wait_until

T = TypeVar("T")
PROGRAM = str(Path(sys.executable).with_name("body-broker"))
PATIENCE_S = 120.0
"""How long something that must come about may take on a loaded machine; what passes does not wait for it."""


def seed_of_tests() -> int:
    """BODY_BROKER_TEST_SEED, or always the one whose first twenty rounds meet the most telling pairs of victim and step."""
    return int(os.environ.get("BODY_BROKER_TEST_SEED", "2409"))  # noqa: TID251  # tests' own


@dataclass(frozen=True, slots=True)
class Victim:
    """What may be killed.

    Attributes:
        name: As rounds log it.
        pid: Its process now; None while it has none. Asked in a thread.
        restore: What an operator has to do after its death; None where the product brings it back by itself.
    """

    name: str
    pid: Callable[[], int | None]
    restore: Callable[[], Awaitable[None]] | None = None


Reach = Callable[[Victim], AbstractAsyncContextManager[str]]


@dataclass(frozen=True, slots=True)
class Step:
    """A place in the product's life at which something is killed.

    Attributes:
        name: As rounds log it.
        reach: Entered, the product stands at the step and the text says by what that was seen; it stays there until the
            exit, which comes after the kill. What cannot be reached raises AssertionError.
    """

    name: str
    reach: Reach


@dataclass(frozen=True, slots=True)
class Round:
    """One kill, as it went.

    Attributes:
        number: Counts from 1.
        victim: Its name.
        step: Its name.
        pid: The process that was killed.
        seen: By what it was seen, right before, that the step was reached.
        killed_at: Monotonic seconds.
        back_after_s: Until everything was ready again.
    """

    number: int
    victim: str
    step: str
    pid: int
    seen: str
    killed_at: float
    back_after_s: float

    def __str__(self) -> str:
        return (
            f"round {self.number:3}  {self.victim:8} (pid {self.pid}) at {self.step!r}: {self.seen}; "
            f"all back after {self.back_after_s:.1f} s"
        )


class Harness:
    """Seeded rounds of kills over victims and steps, each of which must be hit.

    Args:
        victims: What may be killed.
        steps: Where.
        ready: Returns once everything serves again, and fails where it does not.
        seed: Decides which victim dies at which step in which order.
    """

    def __init__(
        self, victims: Sequence[Victim], steps: Sequence[Step], ready: Callable[[], Awaitable[None]], seed: int
    ) -> None:
        self.seed = seed
        self.rounds: list[Round] = []
        self._ready = ready
        chance = random.Random(seed)  # noqa: S311  # repeatable, nothing secret
        self._victims, self._steps = _dealt(victims, chance), _dealt(steps, chance)
        self._named = ({victim.name for victim in victims}, {step.name for step in steps})

    async def round(self) -> Round:
        """The next kill and the way back; logged before it is returned."""
        victim, step = next(self._victims), next(self._steps)
        number = len(self.rounds) + 1
        print(f"seed {self.seed}, round {number}: {victim.name} at {step.name!r}", flush=True)
        async with step.reach(victim) as seen:
            pid = await wait_until(lambda: asyncio.to_thread(victim.pid), f"{victim.name} has a process")
            assert pid is not None
            killed = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            await wait_until(lambda: asyncio.to_thread(_is_dead, pid), f"{victim.name} is dead")
        if victim.restore is not None:
            await victim.restore()
        await self._ready()
        done = Round(number, victim.name, step.name, pid, seen, killed, time.monotonic() - killed)
        self.rounds.append(done)
        print(done, flush=True)
        return done

    def require_every_name_was_hit(self) -> None:
        """Fail where a victim never died, or nothing died at a step: the rounds then proved less than they claim."""
        victims, steps = self._named
        missed = (victims - {r.victim for r in self.rounds}) | (steps - {r.step for r in self.rounds})
        assert not missed, f"never hit in {len(self.rounds)} rounds of seed {self.seed}: {sorted(missed)}"


class Program:
    """One of the product's own programs, running: its output lies in a file.

    Args:
        arguments: What comes after `body-broker`.
        log: Where stdout and stderr go, appended.
        settings: The hub's settings by their variables; nothing else of the machine's settings is passed on.
        program: What is started, if it is not `body-broker` itself.
    """

    def __init__(
        self, arguments: Sequence[str], log: Path, settings: Mapping[str, str], program: Sequence[str] = (PROGRAM,)
    ) -> None:
        self._log = log
        environ = {name: text for name, text in os.environ.items() if not name.startswith("BODY_BROKER_")}  # noqa: TID251  # tests' own
        with log.open("ab") as out:
            self._start = out.tell()
            self.process = subprocess.Popen(
                [*program, *arguments],
                cwd=PROJECT,
                env={**environ, **settings},
                stdout=out,
                stderr=out,
                preexec_fn=before_exec(signal.SIGKILL, leave_root=False),  # noqa: PLW1509  # nothing outlives a killed test run
            )

    @property
    def pid(self) -> int | None:
        """Its process, while it lives."""
        return self.process.pid if self.process.poll() is None else None

    def said(self) -> str:
        """Everything it has written."""
        with self._log.open("rb") as file:
            file.seek(self._start)
            return file.read().decode(errors="replace")

    async def says(self, find: Callable[[str], T | None], what: str) -> T:
        """What `find` finds in its output; fails with the output where the program ends before that."""

        def found() -> T | None:
            alive = self.pid is not None  # asked first: what it says last is there once it has ended
            seen = find(self.said())
            assert seen is not None or alive, f"it ended, but not: {what}\n{self.said()}"
            return seen

        got = await wait_until(found, what, timeout_s=PATIENCE_S)
        assert got is not None
        return got

    async def ended(self) -> int:
        """Its exit status."""
        await wait_until(lambda: self.process.poll() is not None, f"{self.process.args} ends", timeout_s=PATIENCE_S)
        return self.process.returncode

    async def stop(self) -> None:
        """Ask it to end, which it does by itself and well."""
        self.process.terminate()
        status = await self.ended()
        assert status == 0, f"{self.process.args} ended with {status}:\n{self.said()[-4000:]}"

    def kill(self) -> None:
        """Be rid of it, however it is."""
        self.process.kill()
        self.process.wait()


def _is_dead(pid: int) -> bool:
    return birth(pid) is None


def _dealt(deck: Sequence[T], chance: random.Random) -> Iterator[T]:
    """Card after card for ever, the deck shuffled anew each time it is through: chance, but nothing is left out for long."""
    while True:
        yield from chance.sample(deck, len(deck))
