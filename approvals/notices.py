"""Owns notices: one message for each approval, posted once, changed whenever what it shows has changed, and never two that count."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from approvals.cards import Card
from approvals.model import NOTICE_KIND, Approval
from approvals.people import People
from approvals.slack.blocks import Block, Message, message
from approvals.slack.words import GONE, Place, SlackRefused, refused
from body_broker.calls import Json
from body_broker.errors import NotFound
from body_broker.storage.postgres import Executor, Pool
from body_broker.telemetry import get_logger
from body_broker.text import digest
from body_broker.work import queue
from body_broker.work.run import Run

logger = get_logger(__name__)

POST_EVERY_S = 1.0
"""Slack takes about one new message a second in a channel."""
_LOOK_AGAIN_S = 5.0
_ATTEMPTS = 8

_READ = "SELECT team, channel, message, look, parts, mentioned FROM approval_notice WHERE approval_id = $1"
_MENTION = """
INSERT INTO approval_notice (approval_id, mentioned) VALUES ($1, true)
ON CONFLICT (approval_id) DO UPDATE SET mentioned = true
"""
_POSTED = """
INSERT INTO approval_notice (approval_id, team, channel, message, look, parts) VALUES ($1, $2, $3, $4, NULL, 0)
ON CONFLICT (approval_id) DO UPDATE SET team = $2, channel = $3, message = $4, look = NULL, parts = 0
"""
_FORGET = "UPDATE approval_notice SET message = NULL, look = NULL, parts = 0 WHERE approval_id = $1"
_PART = "UPDATE approval_notice SET parts = $2::integer WHERE approval_id = $1"
_SHOWN = """
INSERT INTO approval_notice (approval_id, shown, look, shown_at) VALUES ($1, $2, $3, clock_timestamp())
ON CONFLICT (approval_id) DO UPDATE SET shown = $2, look = $3, shown_at = clock_timestamp(), failures = 0, failure = NULL
"""
_FAILED = """
INSERT INTO approval_notice (approval_id, failures, failed_at, failure) VALUES ($1, 1, clock_timestamp(), $2)
ON CONFLICT (approval_id) DO UPDATE SET failures = approval_notice.failures + 1, failed_at = clock_timestamp(), failure = $2
"""


class Poster(Protocol):
    """Where notices are put: Slack's Web API."""

    async def post(self, channel: str, text: str, blocks: Sequence[Block], *, thread: str | None = None) -> Place:
        """A new message."""
        ...

    async def update(self, place: Place, text: str, blocks: Sequence[Block]) -> None:
        """The same message, changed."""
        ...


@dataclass(frozen=True, slots=True)
class _Notice:
    place: Place | None = None
    look: str | None = None
    parts: int = 0
    mentioned: bool = False


class Notices:
    """Brings the notice of an approval up to date; the handler of one kind of work.

    Args:
        pool: The database.
        find: An approval by id; raises NotFound.
        poster: Slack.
        people: Who is called where.
        channel: Where people are asked whose group has no channel of its own.
        pages: The base URL of the hub's pages; None where it has none.
        failed: Counts a notice that could not be shown.
        now: The time, in UTC.
        post_every_s: The pace of new messages in one channel.
    """

    def __init__(
        self,
        *,
        pool: Pool,
        find: Callable[[str], Awaitable[Approval]],
        poster: Poster,
        people: People,
        channel: str | None,
        pages: Callable[[], str | None],
        failed: Callable[[], None],
        now: Callable[[], datetime],
        post_every_s: float = POST_EVERY_S,
    ) -> None:
        self._pool, self._find, self._poster, self._people = pool, find, poster, people
        self._channel, self._pages, self._failed, self._now = channel, pages, failed, now
        self._pace = _Pace(post_every_s)

    async def handle(self, run: Run) -> Json:
        """Show what the approval of this work is now; what is shown already is not sent again.

        Raises:
            SlackRefused: It could not be shown; counted, logged, and tried again.
        """
        approval_id = str(run.input["approval"])
        try:
            approval = await self._find(approval_id)
        except NotFound:
            return {"shown": None}
        try:
            return await self._show(run, approval)
        except SlackRefused as error:
            logger.warning("approval_notice_failed", approval=approval_id, slack=error.word, attempt=run.work.attempt)
            async with run.fenced() as connection:
                await connection.execute(_FAILED, approval_id, error.word)
            self._failed()
            raise

    async def _show(self, run: Run, approval: Approval) -> Json:
        notice = await self._read(approval.id)
        shown = "approved" if approval.standing == "executing" else approval.standing
        if notice.place is None:
            if approval.standing != "pending":  # over before anybody saw it: there is nothing to ask any more
                await self._note(run, approval, shown, None)
                return {"shown": None}
            channel = self._channel_of(approval)
            has_turn = run.input.get("turn") or run.work.attempt > 1  # a pause lies before each further attempt
            if not has_turn and (wait_s := self._pace.reserve(channel)) > 0:
                await run.commit("later", lambda connection: self._later(connection, run, approval, wait_s))
                return {"later_s": round(wait_s, 3)}
            notice = await self._post(run, approval, channel, notice)
        notice = await self._add_parts(run, approval, notice)
        drawn = self._draw(approval, notice)
        look = _look(drawn)
        if look != notice.look:
            await self._change(run, approval, notice, drawn)
        await self._note(run, approval, shown, look)
        return {"shown": approval.standing}

    async def _post(self, run: Run, approval: Approval, channel: str, notice: _Notice) -> _Notice:
        mentions = () if notice.mentioned else self._mentions_of(approval)
        if mentions:  # noted first: a kill in between leaves them uncalled, not called twice
            async with run.fenced() as connection:
                await connection.execute(_MENTION, approval.id)
        drawn = self._draw(approval, notice, mentions)
        async with self._pace.turn(channel):
            place = await self._poster.post(channel, drawn.text, drawn.blocks)
        async with run.fenced() as connection:
            await connection.execute(_POSTED, approval.id, place.team, place.channel, place.ts)
        # Calling somebody is no look of its own: the message is not sent again to take it back.
        return replace(notice, place=place, look=_look(self._draw(approval, notice)), parts=0)

    async def _add_parts(self, run: Run, approval: Approval, notice: _Notice) -> _Notice:
        parts = self._draw(approval, notice).parts if approval.standing == "pending" else ()
        place = notice.place
        assert place is not None, "only what is posted has a thread"
        for number in range(notice.parts, len(parts)):
            self._pace.reserve(place.channel)
            text = f"Part {number + 1} of {len(parts)} of what is asked for."
            async with self._pace.turn(place.channel):
                await self._poster.post(place.channel, text, parts[number], thread=place.ts)
            async with run.fenced() as connection:
                await connection.execute(_PART, approval.id, number + 1)
            notice = replace(notice, parts=number + 1)
        return notice

    async def _change(self, run: Run, approval: Approval, notice: _Notice, drawn: Message) -> None:
        assert notice.place is not None, "only what is posted can be changed"
        try:
            await self._poster.update(notice.place, drawn.text, drawn.blocks)
        except SlackRefused as error:
            if error.word not in GONE:
                raise
            async with run.fenced() as connection:
                await connection.execute(_FORGET, approval.id)
            if approval.standing == "pending":  # somebody deleted it, and people are to be asked all the same
                raise

    def _draw(self, approval: Approval, notice: _Notice, mentions: Sequence[str] = ()) -> Message:
        card = Card.of(approval, self._people, self._pages(), self._now())
        return message(card, posted=notice.parts, mentions=mentions)

    async def _read(self, approval_id: str) -> _Notice:
        row = await self._pool.fetchrow(_READ, approval_id)
        if row is None:
            return _Notice()
        place = Place(row["team"], row["channel"], row["message"]) if row["message"] else None
        return _Notice(place, row["look"], row["parts"], row["mentioned"])

    async def _note(self, run: Run, approval: Approval, shown: str, look: str | None) -> None:
        async with run.fenced() as connection:
            await connection.execute(_SHOWN, approval.id, shown, look)
            if approval.standing == "approved" and look is not None:
                # What runs is not told by the table: a call that takes long is looked at once more.
                await self._enqueue(connection, run, approval, _LOOK_AGAIN_S, unique_key=f"running {approval.id}")

    async def _later(self, connection: Executor, run: Run, approval: Approval, wait_s: float) -> Json:
        await self._enqueue(connection, run, approval, wait_s, unique_key=None)
        return {"later_s": round(wait_s, 3)}

    async def _enqueue(
        self, connection: Executor, run: Run, approval: Approval, delay_s: float, *, unique_key: str | None
    ) -> None:
        await queue.enqueue(
            connection,
            NOTICE_KIND,
            {"approval": approval.id, "turn": True},
            origin=run.origin,
            delay_s=delay_s,
            unique_key=unique_key,
            limit_key=f"notice {approval.id}",
            attempts_max=_ATTEMPTS,
        )

    def _channel_of(self, approval: Approval) -> str:
        channel = next(_of_groups(approval, self._people.channels), self._channel)
        if channel is None:
            raise refused("no_channel")
        return channel

    def _mentions_of(self, approval: Approval) -> tuple[str, ...]:
        return tuple(dict.fromkeys(_of_groups(approval, self._people.mentions)))


def _of_groups(approval: Approval, by_group: Mapping[str, str]) -> Iterator[str]:
    """What stands for the groups that are asked, in the order of the rules."""
    for requirement in approval.requirements:
        yield from (by_group[group] for group in requirement.approvers if group in by_group)


def _look(drawn: Message) -> str:
    return digest([drawn.text, drawn.blocks])


class _Pace:
    """Gives turns: one each `every_s` in a channel. Another process has turns of its own; then Slack says how long to wait."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._reserved: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    def reserve(self, channel: str) -> float:
        """In how many seconds the next turn is; it is taken."""
        now = asyncio.get_running_loop().time()
        at = max(self._reserved.get(channel, now), now)
        self._reserved[channel] = at + self._every_s
        return at - now

    @asynccontextmanager
    async def turn(self, channel: str) -> AsyncGenerator[None]:
        """One post, however its turn came about: what is left of the pause after the last one is waited for."""
        clock = asyncio.get_running_loop()
        async with self._locks.setdefault(channel, asyncio.Lock()):
            await asyncio.sleep(self._last.get(channel, -self._every_s) + self._every_s - clock.time())
            try:
                yield
            finally:
                self._last[channel] = clock.time()
