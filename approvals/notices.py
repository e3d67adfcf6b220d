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
from approvals.slack.blocks import FORMS, Block, Form, Message, message
from approvals.slack.words import GONE, TOO_LONG, Place, SlackRefused, refused
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
_CHANGE_EVERY = 1.2
"""Slack takes about fifty changes a minute: one in so many times the pace of new messages."""
_CHANGES = "changes"
_BUSY = "busy"
_THREADS_MAX = 3
"""So often a message is posted anew because its thread was gone; then its arguments are on the page."""
_LOOK_AGAIN_S = 5.0
_ATTEMPTS = 8

_READ = "SELECT team, channel, message, look, form, parts, mentioned, failures, failure FROM approval_notice WHERE approval_id = $1"
_MENTION = """
INSERT INTO approval_notice (approval_id, mentioned) VALUES ($1, true)
ON CONFLICT (approval_id) DO UPDATE SET mentioned = true
"""
_POSTED = """
INSERT INTO approval_notice (approval_id, team, channel, message, look, form, parts) VALUES ($1, $2, $3, $4, $5, $6, 0)
ON CONFLICT (approval_id) DO UPDATE SET team = $2, channel = $3, message = $4, look = $5, form = $6, parts = 0
"""
_UNMENTION = "UPDATE approval_notice SET mentioned = false WHERE approval_id = $1"
_FORGET = "UPDATE approval_notice SET message = NULL, look = NULL, form = NULL, parts = 0 WHERE approval_id = $1"
_FORM = "UPDATE approval_notice SET form = $2 WHERE approval_id = $1"
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
    form: Form | None = None
    parts: int = 0
    mentioned: bool = False
    has_no_thread: bool = False


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
        self._post_every_s = post_every_s
        self._pace = _Pace({_CHANGES: post_every_s * _CHANGE_EVERY}, post_every_s)
        self._slot = asyncio.Lock()  # one notice at a time: however slow Slack is, approved calls find a worker

    async def handle(self, run: Run) -> Json:
        """Show what the approval of this work is now; what is shown already is not sent again.

        Raises:
            SlackRefused: It could not be shown; counted, logged, and tried again.
        """
        approval_id = str(run.input["approval"])
        if self._slot.locked():
            return await self._put_off(
                run, approval_id, self._pace.reserve(_BUSY) + self._post_every_s, run.input.get("turn")
            )
        async with self._slot:
            return await self._bring_up_to_date(run, approval_id)

    async def _bring_up_to_date(self, run: Run, approval_id: str) -> Json:
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
            if (wait_s := self._wait_s(run, channel)) > 0:
                return await self._put_off(run, approval.id, wait_s, channel)
            notice = await self._post(run, approval, channel, notice)
        elif self._missing(approval, notice):
            channel = notice.place.channel
            if (wait_s := self._wait_s(run, channel)) > 0:
                return await self._put_off(run, approval.id, wait_s, channel)
            notice = await self._add_part(run, approval, notice, notice.place)
        if notice.place is not None and self._missing(approval, notice):  # one message in a run: others wait too
            channel = notice.place.channel
            return await self._put_off(run, approval.id, self._pace.reserve(channel), channel)
        drawn = self._draw(approval, notice)
        look = _look(drawn)
        if look != notice.look:
            if (wait_s := self._wait_s(run, _CHANGES)) > 0:
                return await self._put_off(run, approval.id, wait_s, _CHANGES)
            look = await self._change(run, approval, notice, drawn)
        await self._note(run, approval, shown, look)
        return {"shown": approval.standing}

    def _missing(self, approval: Approval, notice: _Notice) -> bool:
        """Whether parts are to be written before people can decide."""
        return approval.standing == "pending" and notice.parts < len(self._draw(approval, notice).parts)

    async def _post(self, run: Run, approval: Approval, channel: str, notice: _Notice) -> _Notice:
        mentions = () if notice.mentioned else self._mentions_of(approval)
        if mentions:  # noted first: a kill in between leaves them uncalled, not called twice
            async with run.fenced() as connection:
                await connection.execute(_MENTION, approval.id)
        try:
            async with self._pace.turn(channel):
                place, form = await self._post_in_form(
                    approval, channel, mentions, "page" if notice.has_no_thread else None
                )
        except SlackRefused as error:
            if mentions and error.is_definite:
                async with run.fenced() as connection:
                    await connection.execute(_UNMENTION, approval.id)
            raise
        # Calling somebody is no look of its own: the message is not sent again to take it back.
        notice = replace(notice, place=place, form=form, parts=0)
        notice = replace(notice, look=_look(self._draw(approval, notice)))
        async with run.fenced() as connection:
            await connection.execute(
                _POSTED, approval.id, place.team, place.channel, place.ts, notice.look, notice.form
            )
        return notice

    async def _post_in_form(
        self, approval: Approval, channel: str, mentions: Sequence[str], form: Form | None = None
    ) -> tuple[Place, Form]:
        drawn = self._draw(approval, _Notice(form=form), mentions)
        try:
            return await self._poster.post(channel, drawn.text, drawn.blocks), drawn.form
        except SlackRefused as error:
            if error.word not in TOO_LONG or drawn.form == FORMS[-1]:
                raise
            return await self._post_in_form(approval, channel, mentions, FORMS[FORMS.index(drawn.form) + 1])

    async def _add_part(self, run: Run, approval: Approval, notice: _Notice, place: Place) -> _Notice:
        """One part more."""
        parts, number = self._draw(approval, notice).parts, notice.parts
        text = f"Part {number + 1} of {len(parts)} of what is asked for."
        try:
            async with self._pace.turn(place.channel):
                await self._poster.post(place.channel, text, parts[number], thread=place.ts)
        except SlackRefused as error:
            if error.word in TOO_LONG:
                return await self._in_form(run, approval, notice, "page")
            if error.word in GONE:
                await self._forget(run, approval)
            raise
        async with run.fenced() as connection:
            await connection.execute(_PART, approval.id, number + 1)
        return replace(notice, parts=number + 1)

    async def _change(self, run: Run, approval: Approval, notice: _Notice, drawn: Message) -> str:
        """Make the message what was drawn; the look it has then."""
        assert notice.place is not None, "only what is posted can be changed"
        try:
            async with self._pace.turn(_CHANGES):
                await self._poster.update(notice.place, drawn.text, drawn.blocks)
        except SlackRefused as error:
            if error.word in TOO_LONG and notice.form != "page":
                # The thread takes only what has waited there from the beginning.
                notice = await self._in_form(run, approval, notice, "page")
                return await self._change(run, approval, notice, self._draw(approval, notice))
            if error.word not in GONE:
                raise
            await self._forget(run, approval)
            if approval.standing == "pending":  # somebody deleted it, and people are to be asked all the same
                raise
        return _look(drawn)

    async def _in_form(self, run: Run, approval: Approval, notice: _Notice, form: Form) -> _Notice:
        async with run.fenced() as connection:
            await connection.execute(_FORM, approval.id, form)
        return replace(notice, form=form)

    async def _forget(self, run: Run, approval: Approval) -> None:
        async with run.fenced() as connection:
            await connection.execute(_FORGET, approval.id)

    def _wait_s(self, run: Run, turn: str) -> float:
        """In how many seconds it is this run's turn to send: none where it has waited, or a pause lay before this attempt."""
        return 0.0 if run.input.get("turn") == turn or run.work.attempt > 1 else self._pace.reserve(turn)

    def _draw(self, approval: Approval, notice: _Notice, mentions: Sequence[str] = ()) -> Message:
        card = Card.of(approval, self._people, self._pages(), self._now())
        return message(card, posted=notice.parts, mentions=mentions, form=notice.form)

    async def _read(self, approval_id: str) -> _Notice:
        row = await self._pool.fetchrow(_READ, approval_id)
        if row is None:
            return _Notice()
        has_no_thread = row["failure"] == "thread_gone" and row["failures"] >= _THREADS_MAX
        place = Place(row["team"], row["channel"], row["message"]) if row["message"] else None
        return _Notice(place, row["look"], row["form"], row["parts"], row["mentioned"], has_no_thread)

    async def _note(self, run: Run, approval: Approval, shown: str, look: str | None) -> None:
        async with run.fenced() as connection:
            await connection.execute(_SHOWN, approval.id, shown, look)
            if approval.standing == "approved" and look is not None:
                # What runs is not told by the table: a call that takes long is looked at once more.
                unique_key = f"running {approval.id}"
                await _enqueue(connection, run, approval.id, _LOOK_AGAIN_S, None, unique_key=unique_key)

    async def _put_off(self, run: Run, approval_id: str, wait_s: float, turn: str | None) -> Json:
        """Leave it to another run, which has this turn then; meanwhile no worker is held."""

        async def later(connection: Executor) -> Json:
            await _enqueue(connection, run, approval_id, wait_s, turn)
            return {"later_s": round(wait_s, 3)}

        return await run.commit("later", later)

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


async def _enqueue(
    connection: Executor, run: Run, approval_id: str, delay_s: float, turn: str | None, *, unique_key: str | None = None
) -> None:
    await queue.enqueue(
        connection,
        NOTICE_KIND,
        {"approval": approval_id, "turn": turn},
        origin=run.origin,
        delay_s=delay_s,
        unique_key=unique_key,
        limit_key=f"notice {approval_id}",
        attempts_max=_ATTEMPTS,
    )


def _look(drawn: Message) -> str:
    return digest([drawn.text, drawn.blocks])


class _Pace:
    """Gives turns: one each so many seconds of a kind. Another process has turns of its own; then Slack says how long to wait.

    Args:
        every_s: The pace of some kinds.
        other_s: The pace of every other.
    """

    def __init__(self, every_s: Mapping[str, float], other_s: float) -> None:
        self._every_s, self._other_s = every_s, other_s
        self._reserved: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    def reserve(self, kind: str) -> float:
        """In how many seconds the next turn is; it is taken."""
        now = asyncio.get_running_loop().time()
        at = max(self._reserved.get(kind, now), now)
        self._reserved[kind] = at + self._every_s.get(kind, self._other_s)
        return at - now

    @asynccontextmanager
    async def turn(self, kind: str) -> AsyncGenerator[None]:
        """One message, however its turn came about: what is left of the pause after the last one is waited for."""
        clock = asyncio.get_running_loop()
        every_s = self._every_s.get(kind, self._other_s)
        async with self._locks.setdefault(kind, asyncio.Lock()):
            await asyncio.sleep(min(every_s, self._last.get(kind, -every_s) + every_s - clock.time()))
            try:
                yield
            finally:
                self._last[kind] = clock.time()
