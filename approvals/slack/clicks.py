"""Owns clicks: which message and who, checked, then a vote; whoever was not counted is told so, and nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from approvals.cards import Card
from approvals.model import Approval, Verdict, Voter
from approvals.people import People
from approvals.slack.blocks import APPROVE, CHECK, DENIAL, DENY, REASON_BLOCK, REASON_FIELD, Block, denial
from approvals.slack.words import Place, SlackRefused
from body_broker.calls import Json
from body_broker.errors import BadInput, BodyBrokerError, Conflict, Denied
from body_broker.storage.postgres import Pool
from body_broker.telemetry import get_logger
from body_broker.text import clean

logger = get_logger(__name__)

ANSWER_S = 2.5
"""Slack shows an error where it has no answer after three seconds: whoever clicked is told that it may not have counted."""
CHECK_CHANNEL = "slack_check"
"""The NOTIFY channel on which `body-broker slack check` hears the click on its test card, whichever process got it."""
_TELL_S = 1.0
_DRAIN_S = 5.0

_SHOWN_AT = """
SELECT team, channel, message FROM approval_notice WHERE approval_id = $1 AND message IS NOT NULL
"""


class Votes(Protocol):
    """What is done with approvals; the desk."""

    async def get(self, approval_id: str) -> Approval:
        """One approval; raises NotFound."""
        ...

    async def vote(
        self, approval_id: str, *, digest: str, voter: Voter, verdict: Verdict, reason: str | None = None
    ) -> Approval:
        """The approval after this vote; raises where it does not count."""
        ...


class Teller(Protocol):
    """What a click is answered with; Slack's Web API."""

    async def tell(self, channel: str, user: str, text: str) -> None:
        """Say something to one person."""
        ...

    async def open_modal(self, trigger: str, view: Block) -> None:
        """Open a modal for whoever has just clicked."""
        ...


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)


class _Typed(_Part):
    type: str


class _Named(_Part):
    id: str
    team_id: str | None = None


class _Posted(_Part):
    ts: str


class _Action(_Part):
    action_id: str
    value: str = ""


class _Clicked(_Part):
    team: _Named
    user: _Named
    channel: _Named
    message: _Posted
    trigger_id: str
    actions: tuple[_Action, ...]

    @property
    def place(self) -> Place:
        return Place(self.team.id, self.channel.id, self.message.ts)


class _Field(_Part):
    value: str | None = None


class _State(_Part):
    values: dict[str, dict[str, _Field]]


class _View(_Part):
    callback_id: str
    private_metadata: str
    state: _State


class _Submitted(_Part):
    team: _Named
    user: _Named
    view: _View


class Clicks:
    """Takes what Slack says people did, over either transport.

    Args:
        pool: The database.
        desk: Where votes are counted.
        people: Whose Slack account is whose.
        slack: Where people are told what did not count.
        now: The time, in UTC.
    """

    def __init__(self, *, pool: Pool, desk: Votes, people: People, slack: Teller, now: Callable[[], datetime]) -> None:
        self._pool, self._desk, self._people, self._slack, self._now = pool, desk, people, slack, now
        self._tasks: set[asyncio.Task[Json]] = set()

    async def in_time(self, payload: Json) -> tuple[bool, Json]:
        """Whether Slack may be told that this was taken, and what it is told beside that.

        A vote is durable before it is acknowledged. Where that takes too long it goes on, and Slack tells the person that
        something went wrong: what is acknowledged is never lost.
        """
        task = asyncio.create_task(self.answer(payload), name="slack click")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.wait({task}, timeout=ANSWER_S)
        if not task.done():
            logger.warning("slack_click_slow")
            task.add_done_callback(_log_failure)
            return False, None
        if task.cancelled() or task.exception() is not None:
            _log_failure(task)
            return False, None
        return True, task.result()

    async def drain(self) -> None:
        """Return once every click that came has ended, or has had its time."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_DRAIN_S)

    async def answer(self, payload: Json) -> Json:
        """Do what was clicked; what comes back is what Slack shows in the modal, None for nothing.

        Raises:
            BadInput: Slack does not speak like this.
        """
        try:
            kind = _Typed.model_validate(payload).type
            if kind == "block_actions":
                await self._on_click(_Clicked.model_validate(payload))
            elif kind == "view_submission":
                return await self._on_reason(_Submitted.model_validate(payload))
        except ValidationError as error:
            raise BadInput("This is no interaction that Slack sends from a message or modal of ours.") from error
        return None

    async def _on_click(self, click: _Clicked) -> None:
        action = click.actions[0] if click.actions else None
        if action is None or action.action_id not in {APPROVE, DENY, CHECK}:
            return  # the link to the page: the browser has followed it
        if action.action_id == CHECK:
            await self._on_check(click, action.value)
            return
        try:
            approval_id, digest = _reference(action.value)
            voter = await self._voter(approval_id, click.place, click.user)
            if action.action_id == APPROVE:
                await self._desk.vote(approval_id, digest=digest, voter=voter, verdict="approve")
            else:
                await self._ask_why(approval_id, digest, click)
        except BodyBrokerError as error:
            await self._say(click.channel.id, click.user.id, f"Not counted. {error.message} {error.next_step}")

    async def _on_reason(self, answer: _Submitted) -> Json:
        if answer.view.callback_id != DENIAL:
            return None
        said = answer.view.state.values.get(REASON_BLOCK, {}).get(REASON_FIELD, _Field()).value
        try:
            approval_id, digest, channel, ts = _texts(answer.view.private_metadata, 4)
            voter = await self._voter(approval_id, Place(answer.team.id, channel, ts), answer.user)
            await self._desk.vote(approval_id, digest=digest, voter=voter, verdict="deny", reason=said)
        except BodyBrokerError as error:
            text = clean(f"Not counted. {error.message} {error.next_step}", limit=1900)
            return {"response_action": "errors", "errors": {REASON_BLOCK: text}}
        return None

    async def _voter(self, approval_id: str, place: Place, user: _Named) -> Voter:
        """Who clicked, where it was the message that counts and somebody who is known."""
        row = await self._pool.fetchrow(_SHOWN_AT, approval_id)
        if row is None:
            raise Conflict(
                "The hub has not noted yet where this request is shown.", next_step="Click again in a moment."
            )
        if Place(row["team"], row["channel"], row["message"]) != place:
            raise Conflict(
                "This message is not the one that counts for this approval: it was copied, forwarded or replaced.",
                next_step="Decide on the message that the app itself posted last, or on the approval's page.",
            )
        if user.team_id not in {None, place.team}:
            raise Denied(
                f"Your Slack account belongs to another workspace ({clean(str(user.team_id), limit=30)}): only members of the "
                "one that the app is installed in decide here.",
                next_step="Decide on the approval's page, or with an account of this workspace.",
            )
        person = self._people.by_slack(user.id)
        if person is None:
            raise Denied(
                f"Your Slack account ({clean(user.id, limit=30)}) stands for nobody in the hub's file of approvers.",
                next_step="Whoever runs the hub adds it to approvers.toml.",
            )
        evidence = {"team": place.team, "channel": place.channel, "message": place.ts, "user": user.id}
        return Voter(person=person, via="slack", evidence=evidence)

    async def _ask_why(self, approval_id: str, digest: str, click: _Clicked) -> None:
        approval = await self._desk.get(approval_id)
        card = Card.of(approval, self._people, None, self._now())
        if approval.digest != digest or not card.is_open:
            raise Conflict(
                f"It waits for nobody any more: it is {approval.standing}.", next_step="Nothing is to be done."
            )
        private = orjson.dumps([approval_id, digest, click.channel.id, click.message.ts]).decode()
        try:
            await self._slack.open_modal(click.trigger_id, denial(card, private))
        except SlackRefused as error:
            logger.warning("slack_modal_not_opened", approval=approval_id, slack=error.word)
            raise Conflict(
                "Slack did not open the window to deny it.", next_step="Click Deny again, or deny it on its page."
            ) from error

    async def _on_check(self, click: _Clicked, value: str) -> None:
        word = {"value": value[:100], "user": click.user.id, "channel": click.channel.id}
        await self._pool.execute("SELECT pg_notify($1, $2)", CHECK_CHANNEL, orjson.dumps(word).decode())

    async def _say(self, channel: str, user: str, text: str) -> None:
        """Tell one person; where Slack is slow the click is acknowledged meanwhile."""
        task = asyncio.create_task(self._told(channel, user, text), name="slack tells")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.wait({task}, timeout=_TELL_S)

    async def _told(self, channel: str, user: str, text: str) -> None:
        try:
            await self._slack.tell(channel, user, text)
        except SlackRefused as error:
            logger.warning("slack_person_not_told", slack=error.word)


def _reference(value: str) -> tuple[str, str]:
    approval_id, digest = _texts(value, 2)
    return approval_id, digest


def _texts(value: str, count: int) -> list[str]:
    """So many texts of what one of our buttons carries."""
    try:
        found = orjson.loads(value)
    except orjson.JSONDecodeError:
        found = None
    if isinstance(found, list) and len(found) == count and all(isinstance(each, str) for each in found):  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType] - JSON
        return found  # pyright: ignore[reportUnknownVariableType] - looked at just now
    raise BadInput("This button is none of ours.", next_step="Decide on the message that the app posted.")


def _log_failure(task: asyncio.Task[Json]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("slack_click_failed", exc_info=error)
