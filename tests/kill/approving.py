"""Owns killing whatever asks people, shows them, counts their votes or carries out what they approved: steps, clients, what must hold."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import random
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from approvals.slack.blocks import APPROVE
from tests.counterparts.slack import Message, Workspace, workspace
from tests.kill import press
from tests.kill.harness import PATIENCE_S, Harness, Step, Victim
from tests.kill.holding import holding
from tests.kill.product import Answer, Product
from tests.waiting import wait_until

BRONZE = "tier:bronze"
ANNA, CHANNEL = "U0ANNA00", "C0ASKED01"
ONCE, AGAIN = "print_once", "print_again"
PRESS = (sys.executable, "-m", "tests.kill.press")
_APPROVERS = f'[people.anna]\ngroups = ["sre"]\nslack = "{ANNA}"\n'
_WORKERS = {"hub", "worker"}
_ASKED = "LOCK TABLE approval IN SHARE MODE"
_SHOWN = "LOCK TABLE approval_notice IN SHARE MODE"
_VOTED = "LOCK TABLE approval_vote IN SHARE MODE"
_CLAIMED = "SELECT pg_advisory_xact_lock(hashtext('work_claim'))"
_DECIDED = "LOCK TABLE audit_record IN SHARE MODE"
_OF_TITLE = """
SELECT a.id, a.state, a.outcome, a.effect, a.delivered_at IS NOT NULL AS delivered, w.state AS work, n.message,
    (SELECT count(*) FROM approval_vote v WHERE v.approval_id = a.id) AS votes,
    (SELECT count(*) FROM work_step s WHERE s.work = a.id) AS steps
FROM approval a JOIN work w ON w.id = a.id LEFT JOIN approval_notice n ON n.approval_id = a.id
WHERE a.arguments::jsonb ->> 'title' = $1 ORDER BY a.ordinal
"""
_NOTICES = "SELECT count(*) AS n FROM work WHERE kind = 'approval_notice' AND state IN ('queued', 'running')"
_UNRECORDED = "SELECT count(*) AS n FROM approval WHERE outcome IS DISTINCT FROM recorded"
_HELD_BY = """
SELECT split_part(worker, ':', 2)::integer AS pid, coalesce(open_effect, begun) AS effect
FROM work WHERE id = ANY ($1) AND state = 'running'
"""
_VERDICTS = """
SELECT body::jsonb ->> 'kind' AS kind, body::jsonb ->> 'verdict' AS verdict FROM audit_record
WHERE body::jsonb -> 'details' ->> 'approval' = $1
"""


@dataclass
class Wanted:
    """One call that somebody makes until they are told how it ended.

    Attributes:
        unknown: Whether its worker was killed inside an effect that must not be repeated.
    """

    title: str
    tool: str
    client: asyncio.Task[str]
    unknown: bool = False


@dataclass
class Studio:
    """The product, its Slack, and everybody who asks and approves there."""

    product: Product
    slack: Workspace
    folder: Path
    made: list[Wanted] = field(default_factory=list[Wanted])
    open: list[Wanted] = field(default_factory=list[Wanted])
    stale_clicks: int = 0
    codes: Counter[str] = field(default_factory=Counter[str])

    def ask(self, tool: str) -> Wanted:
        """Somebody makes a call."""
        title = f"title {len(self.made)}"
        wanted = Wanted(title, tool, asyncio.create_task(self._call(tool, title)))
        self.made.append(wanted)
        self.open.append(wanted)
        return wanted

    def call_again(self, wanted: Wanted) -> None:
        """Whoever called comes back and makes the same call, or reads what a connection that broke was told."""
        wanted.client = asyncio.create_task(self._return(wanted))

    async def _return(self, wanted: Wanted) -> str:
        row = await self.asked(wanted)
        return await (self._read(row["id"]) if row["delivered"] else self._call(wanted.tool, wanted.title))

    async def asked(self, wanted: Wanted) -> Any:  # the row
        """Its approval, once it is there."""
        return (await wait_until(lambda: self.rows(wanted), f"{wanted.title} is asked for", PATIENCE_S))[0]

    async def rows(self, wanted: Wanted) -> list[Any]:  # rows
        return await self.product.sql(_OF_TITLE, wanted.title)

    async def shown(self, wanted: Wanted) -> Message:
        """The message that counts for it."""

        async def posted() -> str | None:
            return (await self.asked(wanted))["message"]

        ts = await wait_until(posted, f"{wanted.title} is shown", PATIENCE_S)
        return next(message for message in self.slack.messages if message.ts == ts)

    async def quiet(self) -> None:
        """Return once no notice is on its way."""

        async def none() -> bool:
            return (await self.product.sql(_NOTICES))[0]["n"] == 0

        await wait_until(none, "every notice is shown", PATIENCE_S)

    async def settled(self) -> None:
        """Return once no end is left to record, so that nothing but what is asked from now on waits for the audit."""

        async def all_recorded() -> bool:
            return (await self.product.sql(_UNRECORDED))[0]["n"] == 0

        await wait_until(all_recorded, "every end is recorded", PATIENCE_S)

    async def click(self, message: Message) -> int:
        """Somebody clicks Approve; the HTTP status, 0 where nothing answered."""
        if APPROVE not in message.buttons():
            return 0
        self.slack.request_url = self.product.url.removesuffix("mcp") + "slack/interactions"
        try:
            return (await self.slack.click(ANNA, message, APPROVE)).status
        except aiohttp.ClientError:
            return 0

    async def approve(self, wanted: Wanted) -> None:
        """Somebody clicks until it counts, on the very message; on any other it must not."""
        message = await self.shown(wanted)
        value = message.buttons().get(APPROVE, {}).get("value")
        for other in self.slack.in_channel(CHANNEL):
            if value and other.ts != message.ts and other.buttons().get(APPROVE, {}).get("value") == value:
                await self.click(other)
                assert (await self.asked(wanted))["votes"] == 0, "a click on another message counted"
                self.stale_clicks += 1

        async def counted() -> bool:
            if (await self.asked(wanted))["state"] == "pending":
                await self.click(await self.shown(wanted))
            return (await self.asked(wanted))["state"] == "approved"

        await wait_until(counted, f"{wanted.title} is approved", PATIENCE_S)

    async def come_to_an_end(self) -> None:
        """Everything open is approved and ends, and whoever called is told."""
        for wanted in self.open:
            if (await self.asked(wanted))["state"] == "pending":
                await self.approve(wanted)
            await asyncio.wait({wanted.client}, timeout=2 * PATIENCE_S)
            assert wanted.client.done(), (
                f"nobody was told of {wanted.title}: {[dict(r) for r in await self.rows(wanted)]}"
            )
            await self.require(wanted, wanted.client.result())
        self.open.clear()

    async def require(self, wanted: Wanted, told: str) -> None:
        """Nothing was lost, nothing ran twice, and unknown is only what was killed inside."""
        rows = await self.rows(wanted)
        assert len(rows) == 1, f"{wanted.title} was asked for {len(rows)} times"
        row, times = rows[0], self.printed().count(rows[0]["id"])
        print(f"  {wanted.tool} {row['outcome']}, printed {times} times, its client was told {told}")
        if wanted.unknown:
            assert (row["outcome"], told) == ("unknown", "outcome_unknown"), (dict(row), told)
            assert times <= 1, f"{wanted.title} ran twice"
        else:
            assert (row["outcome"], told, times) == ("done", "its result", 1), (dict(row), told, times)
        verdicts = Counter((each["kind"], each["verdict"]) for each in await self.product.sql(_VERDICTS, row["id"]))
        assert verdicts["asked", "ask"] == 1, verdicts
        assert verdicts["approval", "approved"] >= 1, verdicts  # one more where a kill took the commit

    def printed(self) -> list[str]:
        """What was printed."""
        file = self.folder / press.PRINTED
        return file.read_text("utf-8").splitlines() if file.exists() else []

    def inside(self, *, printed: bool) -> dict[str, int]:
        """Who carries out what now, by approval: the process that began last."""
        lines = (self.folder / press.BEGUN).read_text("utf-8").splitlines()
        fields = [line.split() for line in lines]
        return {each[0]: int(each[1]) for each in fields if (len(each) == 3) is printed}

    @contextlib.contextmanager
    def kept(self, gate: str) -> Generator[None]:
        """Nobody passes a place of the press."""
        with (self.folder / gate).open("a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    async def _call(self, tool: str, title: str) -> str:
        """Call until told; who finds that it was told to a connection that broke reads it by its id."""
        while True:
            answer = await self.product.call(BRONZE, tool, {"title": title, "reason": "a round"})
            code = "broken" if answer is None else answer.code
            self.codes[code or "its result"] += 1
            if answer is not None and code is None:
                assert answer.result["title"] == title, answer
                return "its result"
            if code == "outcome_unknown":
                return code
            assert code in {"broken", "unavailable", "approval_pending"}, answer
            await self.product.serves()
            rows = await self.product.sql(_OF_TITLE, title)
            if rows and rows[0]["delivered"]:
                return await self._read(rows[0]["id"])

    async def _read(self, approval_id: str) -> str:
        async def read() -> Answer | None:
            found = await self.product.call(BRONZE, "get_approval", {"id": approval_id})
            return found if found is not None and found.code is None else None

        answer = await wait_until(read, "an approval is read", PATIENCE_S)
        assert answer is not None
        assert answer.result["standing"] == "done", answer
        return "its result"


class ApprovalSteps:
    """The steps over one studio."""

    def __init__(self, studio: Studio, chance: random.Random) -> None:
        self._studio, self._chance = studio, chance

    def all(self) -> list[Step]:
        """Every step; effects have one call in the hub and one in the worker."""
        return [
            Step("ask: recorded, not yet committed", self._before_asked),
            Step("ask: people are asked, its client waits", self._waiting),
            Step("notice: sent to Slack, not yet answered", self._before_posted),
            Step("notice: posted, not yet noted", self._before_noted),
            Step("vote: recorded, not yet committed", self._before_voted),
            Step("vote: counted, nobody has claimed it", self._before_claimed),
            Step("effect to be had once: claimed, not begun", self._before_begun),
            Step("effect to be had once: begun, not had", lambda v: self._inside(v, ONCE, press.BEFORE)),
            Step("effect to be had once: had, not told", lambda v: self._inside(v, ONCE, press.AFTER)),
            Step("effect that may repeat: begun, not had", lambda v: self._inside(v, AGAIN, press.BEFORE)),
            Step("effect that may repeat: had, not told", lambda v: self._inside(v, AGAIN, press.AFTER)),
            Step("end: recorded as a step, not yet written", self._before_end),
            Step("end: written while its client was away", self._untold),
        ]

    @property
    def _url(self) -> str:
        return self._studio.product.database_url

    def _ask(self) -> Wanted:
        return self._studio.ask(self._chance.choice((ONCE, AGAIN)))

    @asynccontextmanager
    async def _before_asked(self, _victim: Victim) -> AsyncGenerator[str]:
        await self._studio.quiet()
        async with holding(self._url, _ASKED) as held:
            wanted = self._ask()
            await held.has_stopped("hub")
            assert not await self._studio.rows(wanted), "it was asked for before it could be"
            yield "the request waits to be written"
            held.let_go()

    @asynccontextmanager
    async def _waiting(self, _victim: Victim) -> AsyncGenerator[str]:
        wanted = self._ask()
        row = await self._studio.asked(wanted)
        assert not wanted.client.done()
        yield f"it is {row['state']}, its client waits"

    @asynccontextmanager
    async def _before_posted(self, _victim: Victim) -> AsyncGenerator[str]:
        await self._studio.quiet()
        came, go = asyncio.Event(), asyncio.Event()

        async def hold(method: str) -> None:
            if method == "chat.postMessage":
                came.set()
                await go.wait()

        self._studio.slack.before_answer = hold
        try:
            wanted = self._ask()
            await wait_until(came.is_set, "a notice is sent", PATIENCE_S)
            assert (await self._studio.asked(wanted))["message"] is None
            yield "Slack has it, and has not answered"
        finally:
            self._studio.slack.before_answer = None
            go.set()

    @asynccontextmanager
    async def _before_noted(self, _victim: Victim) -> AsyncGenerator[str]:
        await self._studio.quiet()
        async with holding(self._url, _SHOWN) as held:
            wanted = self._ask()
            runs_it = await held.has_stopped_one()
            assert (await self._studio.asked(wanted))["message"] is None
            yield f"the message is there, the {runs_it} has not noted it"
            held.let_go()

    @asynccontextmanager
    async def _before_voted(self, _victim: Victim) -> AsyncGenerator[str]:
        wanted = self._ask()
        message = await self._studio.shown(wanted)
        async with holding(self._url, _VOTED) as held:
            clicked = asyncio.create_task(self._studio.click(message))
            await held.has_stopped("hub")
            row = await self._studio.asked(wanted)
            assert (row["state"], row["votes"], row["work"]) == ("pending", 0, "waiting")
            yield "the vote waits to be written"
            held.let_go()
        await clicked

    @asynccontextmanager
    async def _before_claimed(self, _victim: Victim) -> AsyncGenerator[str]:
        wanted = self._ask()
        await self._studio.shown(wanted)
        await self._studio.quiet()
        async with holding(self._url, _CLAIMED) as held:
            await self._studio.approve(wanted)
            row = await self._studio.asked(wanted)
            assert (row["state"], row["work"]) == ("approved", "queued")
            yield "it is approved and waits for a worker"
            held.let_go()

    @asynccontextmanager
    async def _before_begun(self, _victim: Victim) -> AsyncGenerator[str]:
        studio = self._studio
        two = [studio.ask(ONCE) for _ in _WORKERS]
        for wanted in two:
            await studio.shown(wanted)
        await studio.quiet()
        await studio.settled()
        async with AsyncExitStack() as stack:
            claims = await stack.enter_async_context(holding(self._url, _CLAIMED))
            for wanted in two:
                await studio.approve(wanted)
            decision = await stack.enter_async_context(holding(self._url, _DECIDED))
            claims.let_go()
            ids = [(await studio.asked(wanted))["id"] for wanted in two]

            async def both() -> bool:
                rows = await studio.product.sql(_HELD_BY, ids)
                assert not any(row["effect"] for row in rows), "an effect began whose decision is not on the audit"
                return {row["pid"] for row in rows} == {studio.product.pid(w) for w in _WORKERS}

            await wait_until(both, "hub and worker have claimed one each", PATIENCE_S)
            await decision.has_stopped(*_WORKERS)
            yield "both are claimed, no effect has begun"
            decision.let_go()

    @asynccontextmanager
    async def _inside(self, victim: Victim, tool: str, gate: str) -> AsyncGenerator[str]:
        async with self._both_inside(tool, gate) as ids:
            pid = self._studio.product.pid(victim.name)
            inside = self._studio.inside(printed=gate == press.AFTER)
            hit = [wanted for wanted, approval in ids if inside[approval] == pid]
            assert len(hit) == 1, f"{victim.name} is inside none of them"
            hit[0].unknown = tool == ONCE
            yield f"the {victim.name} is inside one of them"

    @asynccontextmanager
    async def _before_end(self, _victim: Victim) -> AsyncGenerator[str]:
        async with AsyncExitStack() as stack:
            entered = await stack.enter_async_context(AsyncExitStack())
            ids = await entered.enter_async_context(self._both_inside(self._chance.choice((ONCE, AGAIN)), press.AFTER))
            held = await stack.enter_async_context(holding(self._url, _ASKED))
            await entered.aclose()
            await held.has_stopped(*_WORKERS)

            async def recorded() -> bool:
                return all([(await self._studio.asked(wanted))["steps"] == 1 for wanted, _ in ids])

            await wait_until(recorded, "both effects are recorded", PATIENCE_S)
            rows = [await self._studio.asked(wanted) for wanted, _ in ids]
            assert {row["work"] for row in rows} == {"running"}
            yield "both are recorded as had, no end is written"
            held.let_go()

    @asynccontextmanager
    async def _untold(self, _victim: Victim) -> AsyncGenerator[str]:
        wanted = self._ask()
        await self._studio.asked(wanted)
        wanted.client.cancel()
        await self._studio.approve(wanted)

        async def over() -> bool:
            return (await self._studio.asked(wanted))["outcome"] == "done"

        await wait_until(over, "it is done", PATIENCE_S)
        yield "it is done, and its client is gone"
        self._studio.call_again(wanted)

    @asynccontextmanager
    async def _both_inside(self, tool: str, gate: str) -> AsyncGenerator[list[tuple[Wanted, str]]]:
        """Two approved calls stand at a gate, one in the hub and one in the worker; let through on the way out."""
        studio = self._studio
        two = [studio.ask(tool) for _ in _WORKERS]
        with studio.kept(gate):
            ids = [(wanted, (await studio.asked(wanted))["id"]) for wanted in two]
            for wanted in two:
                await studio.approve(wanted)

            def both() -> bool:
                inside = studio.inside(printed=gate == press.AFTER)
                return {inside.get(each) for _, each in ids} == {studio.product.pid(w) for w in _WORKERS}

            await wait_until(both, "hub and worker are inside", PATIENCE_S)
            yield ids


async def survive(folder: Path, *, seed: int, rounds: int) -> Harness:
    """The harness after so many rounds in which no approved call was lost or run twice; fails at the first that was."""
    chance = random.Random(seed)  # noqa: S311  # repeatable, nothing secret
    data_dir = folder / "data"
    await asyncio.to_thread(prepare, data_dir, folder)
    async with workspace() as slack:
        product = Product(data_dir, folder, settings_of(slack, folder), PRESS)
        studio = Studio(product, slack, folder)

        async def ready() -> None:
            await product.ready()
            await studio.come_to_an_end()

        hub_and_worker = product.victims()[:2]
        harness = Harness(hub_and_worker, ApprovalSteps(studio, chance).all(), ready, seed)
        async with product.open(BRONZE):
            for _ in range(rounds):
                await harness.round()
            _require_nothing_else(studio)
            await studio.quiet()
            await product.stop()
            said = await product.run("audit", "verify")
            assert said.splitlines()[-1].startswith("intact"), said
    unknown = sum(wanted.unknown for wanted in studio.made)
    print(
        f"{len(studio.made)} calls approved: {len(studio.made) - unknown} done once, {unknown} unknown; "
        f"clients were told {dict(studio.codes)}; {studio.stale_clicks} clicks on messages that do not count"
    )
    return harness


def _require_nothing_else(studio: Studio) -> None:
    counted = Counter(studio.printed())
    assert set(counted.values()) <= {1}, counted
    assert len(counted) <= len(studio.made)


def settings_of(slack: Workspace, folder: Path) -> dict[str, str]:
    """Of a product that asks in a channel of this Slack, where somebody approves."""
    slack.add_channel(CHANNEL, slack.add_user(ANNA))
    return {
        press.FOLDER: str(folder),
        "BODY_BROKER_SLACK_BOT_TOKEN": slack.token,
        "BODY_BROKER_SLACK_SIGNING_SECRET": slack.signing_secret,
        "BODY_BROKER_SLACK_CHANNEL": CHANNEL,
        "BODY_BROKER_SLACK_API_URL": slack.url,
        "BODY_BROKER_APPROVAL_WAIT_S": "45",
    }


def prepare(data_dir: Path, folder: Path) -> None:
    """Who approves, and an empty press."""
    data_dir.mkdir()
    (data_dir / "approvers.toml").write_text(_APPROVERS, encoding="utf-8")
    (folder / press.BEGUN).touch()
