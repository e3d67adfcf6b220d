"""Owns killing any program or store while everybody is at work: two hubs, a worker, an engine, and four clients that never stop.

The other rounds kill at named steps; these kill at any moment of full traffic, over everything at once.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.counterparts.slack import workspace
from tests.kill import approving, experts, world
from tests.kill.approving import AGAIN, ONCE, PRESS, Wanted, prepare, settings_of
from tests.kill.experts import BRONZE, Echo, endpoint_of
from tests.kill.harness import PATIENCE_S, Harness, Step, Victim
from tests.kill.product import HUBS, Product
from tests.kill.promises import READER, Promises
from tests.waiting import end_all, wait_until

RUNS = (*HUBS, "worker", "engine")


class Approvals(approving.Studio):
    """Calls that people approve, whichever moment is hit: unknown is only what must not be repeated, and it ran once at most."""

    async def require(self, wanted: Wanted, told: str) -> None:
        rows = await self.rows(wanted)
        assert len(rows) == 1, f"{wanted.title} was asked for {len(rows)} times"
        wanted.unknown = rows[0]["outcome"] == "unknown"
        assert not wanted.unknown or wanted.tool == ONCE, dict(rows[0])
        await super().require(wanted, told)


@dataclass
class Everyone:
    """Four clients at work at the same time: changes of the world, approvals, jobs of experts, reads.

    Attributes:
        done: What was brought to its end, by kind.
        codes: What readers were told but answers.
    """

    product: Product
    players: world.Players
    approvals: Approvals
    jobs: experts.Studio
    promises: Promises
    chance: random.Random
    done: Counter[str] = field(default_factory=Counter[str])
    codes: Counter[str] = field(default_factory=Counter[str])
    _clients: list[asyncio.Task[None]] = field(default_factory=list[asyncio.Task[None]])

    @asynccontextmanager
    async def at_work(self) -> AsyncGenerator[None]:
        """They go on until the way out, where each comes to the end of what it has begun; a fault of theirs is raised there."""
        over = asyncio.Event()
        works = {"approval": self._approve, "job": self._submit, "read": self._read}
        async with self.players.playing():
            self._clients = [asyncio.create_task(self._go_on(kind, work, over)) for kind, work in works.items()]
            try:
                yield
                over.set()
                await asyncio.gather(*self._clients)
            finally:
                await end_all(self._clients)

    def have_done(self, changes: int, reads: int) -> bool:
        """Whether so many changes and reads were answered; fails where a client gave up."""
        for client in self._clients:
            if client.done():
                client.result()
        return self.players.have_answered(changes) and self.done["read"] >= reads

    async def _go_on(self, kind: str, work: Callable[[], Awaitable[None]], over: asyncio.Event) -> None:
        while not over.is_set():
            await work()
            self.done[kind] += 1
            await asyncio.sleep(0)  # so that the others have a turn

    async def _approve(self) -> None:
        self.approvals.ask(self.chance.choice((ONCE, AGAIN)))
        await self.approvals.come_to_an_end()

    async def _submit(self) -> None:
        self.jobs.ask(calls=self.chance.random() < 0.3)
        await self.jobs.come_to_an_end()

    async def _read(self) -> None:
        """What was taken in is found, or the reader is told that it cannot be looked for now."""
        (drafts,) = self.promises.imports.values()
        title = self.chance.choice(drafts).title
        answer = await self.product.call(READER, "search_lore", {"query": title, "k": 50})
        if answer is not None and answer.code is None:
            assert {item["title"] for item in answer.result["items"]} == {title}, answer
            return
        self.codes["broken" if answer is None else str(answer.code)] += 1
        assert answer is None or answer.code == "unavailable", answer
        await self.product.serves()


class Moments:
    """The one step over everyone: any moment of full traffic."""

    def __init__(self, everyone: Everyone, chance: random.Random) -> None:
        self._everyone, self._chance = everyone, chance

    def all(self) -> list[Step]:
        """The step."""
        return [Step("everything at once: in full traffic", self._in_traffic)]

    @asynccontextmanager
    async def _in_traffic(self, _victim: Victim) -> AsyncGenerator[str]:
        everyone = self._everyone
        before = everyone.players.answered, everyone.done["read"]
        changes, reads = before[0] + self._chance.randint(3, 40), before[1] + self._chance.randint(1, 20)
        await wait_until(lambda: everyone.have_done(changes, reads), "clients are answered", timeout_s=PATIENCE_S)
        open_ones = len(everyone.approvals.open) + len(everyone.jobs.open)
        yield f"{everyone.players.answered - before[0]} changes meanwhile, {open_ones} approvals and jobs open"


async def survive(folder: Path, *, seed: int, rounds: int) -> Harness:
    """The harness after so many rounds in which nothing acknowledged was lost or done twice; fails at the first that was."""
    chance = random.Random(seed)  # noqa: S311  # repeatable, nothing secret
    model, ledger = Echo(), world.Ledger()
    await asyncio.to_thread(prepare, folder / "data", folder)
    async with AsyncExitStack() as stack:
        slack = await stack.enter_async_context(workspace())
        endpoint, of_experts = await stack.enter_async_context(endpoint_of(model))
        settings = {**settings_of(slack, folder), **of_experts, "BODY_BROKER_ENGINE_LEASE_S": "1"}
        product = Product(folder / "data", folder, {**settings, "BODY_BROKER_TOOLS": "all"}, PRESS, RUNS)
        everyone = Everyone(
            product,
            world.Players(product, ledger, chance),
            Approvals(product, slack, folder),
            experts.Studio(product, endpoint, model),
            Promises(product, chance),
            chance,
        )
        harness = Harness(product.victims(), Moments(everyone, chance).all(), product.ready, seed)
        async with product.open(READER, BRONZE, *world.CLIENTS):
            await world.populate(product)
            await everyone.promises.bring()
            await everyone.promises.imports_end()
            async with everyone.at_work():
                for _ in range(rounds):
                    await harness.round()
                    await world.require_sound(product)
            await world.require_kept(product, ledger)
            await world.require_told(product)
            await everyone.promises.require_imports()
            counted = Counter(everyone.approvals.printed())
            assert set(counted.values()) <= {1}, counted
            await product.stop()
            said = await product.run("audit", "verify")
            assert said.splitlines()[-1].startswith("intact"), said
    unknown = sum(wanted.unknown for wanted in everyone.approvals.made)
    print(
        f"{len(ledger.changes)} changes kept, {ledger.repeated} of them asked for again; {dict(everyone.done)} came to their ends, "
        f"{unknown} approved calls unknown; clients were told {dict(ledger.codes + everyone.codes + everyone.approvals.codes + everyone.jobs.told)}"
    )
    return harness
