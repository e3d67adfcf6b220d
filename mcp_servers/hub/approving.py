"""Owns approvals as one process has them: the desk, who may say yes, second factors, waiting, and where the pages are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from approvals import sweeper
from approvals.desk import Desk
from approvals.factors import Factors, RelyingParty
from approvals.people import People, people_of
from approvals.recording import Counts
from approvals.waiting import Waiters, open_waiters
from body_broker.audit.auditor import Auditor
from body_broker.calls import Room, Tool
from body_broker.errors import NotConfigured
from body_broker.settings import Settings
from body_broker.storage.stores import Stores
from body_broker.text import digest
from body_broker.work.run import Handler
from body_broker.work.schedule import Schedule
from mcp_servers.hub.berth import Berth
from mcp_servers.hub.listing import annotations_of
from mcp_servers.hub.secrets import Secrets
from mcp_servers.hub.session_store import FORGET_CONVERSATIONS
from policies.engine import Policy

if TYPE_CHECKING:
    from approvals.slack.opening import Slack

_LOOPBACK = frozenset({"127.0.0.1", "::1", "0.0.0.0", "::", ""})  # noqa: S104 - compared with, not bound


class Definitions(Mapping[str, str]):
    """By tool the digest of what people are told it is: name, description, arguments, annotations. Made when first asked for."""

    def __init__(self, rooms: Sequence[Room]) -> None:
        self.serve(rooms)

    def serve(self, rooms: Sequence[Room]) -> None:
        """Tell of these rooms from now on."""
        self._tools: dict[str, Tool] = {tool.name: tool for room in rooms for tool in room.tools}
        self._known: dict[str, str] = {}

    def __getitem__(self, name: str) -> str:
        """The digest of one tool's definition."""
        if name not in self._known:
            self._known[name] = _definition(self._tools[name])
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        """Every tool's name."""
        return iter(self._tools)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._tools)


class Approvals:
    """Everything about approvals in one process.

    Attributes:
        desk: The only way to move one.
        waiters: Whoever waits for one here.
        people: Who may say yes.
        factors: Their second factors.
        definitions: By tool the digest of its present definition.
        slack: Slack as this process has it; None where it is not set up.
        asked_in_slack: Whether requests are posted to Slack.
    """

    slack: Slack | None = None
    waiters: Waiters

    def __init__(
        self,
        *,
        settings: Settings,
        stores: Stores,
        secrets: Secrets,
        auditor: Auditor,
        policy: Policy,
        people: People,
        rooms: Sequence[Room],
        counts: Counts | None,
        kept_url: str | None,
    ) -> None:
        self.people, self.definitions = people, Definitions(rooms)
        self.asked_in_slack = settings.slack_bot_token is not None
        self._public_url, self._kept_url = settings.public_url, kept_url
        self._served_at: str | None = None
        self.desk = Desk(
            pool=stores.pool,
            auditor=auditor,
            policy=policy,
            people=people,
            definitions=self.definitions,
            notify=self.asked_in_slack,
            open_max=settings.approvals_open_max,
            pages=self.pages_url,
            counts=counts,
        )
        self.factors = Factors(
            pool=stores.pool, auditor=auditor, key=secrets.derive("factors"), people=people, rp=self.relying_party
        )

    def pages_url(self) -> str | None:
        """Where people reach the hub's pages, without a slash at the end; None where nobody serves them."""
        return self._public_url or self._served_at or self._kept_url

    def served_at(self, url: str | None) -> None:
        """Note where a listener of this installation serves the pages; browsers make passkeys on `localhost`, not on 127.0.0.1."""
        self._kept_url = None  # whoever tells us knows better than what was found at the start
        if url is None:
            self._served_at = None
            return
        parts = urlsplit(url)
        host = "localhost" if (parts.hostname or "") in _LOOPBACK else f"{parts.hostname}"
        host = f"[{host}]" if ":" in host else host
        port = f":{parts.port}" if parts.port else ""
        self._served_at = f"{parts.scheme}://{host}{port}"

    def relying_party(self) -> RelyingParty:
        """Where passkeys belong now.

        Raises:
            NotConfigured: There are no pages.
        """
        url = self.pages_url()
        if url is None:
            raise NotConfigured(
                "This hub has no pages, so there is nothing that a passkey could belong to.",
                next_step="Run `body-broker serve`, or set BODY_BROKER_PUBLIC_URL; or enrol an authenticator app.",
                details={"setting": "BODY_BROKER_PUBLIC_URL"},
            )
        return RelyingParty.at(url)

    def handlers(self) -> Mapping[str, Handler]:
        """What a worker needs beside the executor: notices and sweeping."""
        also = {"conversations": FORGET_CONVERSATIONS}
        return {**sweeper.handlers(self.desk, also=also), **(self.slack.handlers if self.slack else {})}

    def schedules(self) -> tuple[Schedule, ...]:
        """The work of approvals that comes round by itself."""
        return sweeper.schedules()


@asynccontextmanager
async def open_approvals(
    settings: Settings,
    stores: Stores,
    secrets: Secrets,
    auditor: Auditor,
    *,
    policy: Policy,
    rooms: Sequence[Room],
    lasting: bool,
    counts: Counts | None = None,
) -> AsyncGenerator[Approvals]:
    """Approvals over one process's stores.

    Args:
        settings: Loaded once by the entry point.
        stores: Open.
        secrets: Second factors are sealed under a key derived from these.
        auditor: Takes each move before it is committed.
        policy: Decides whether votes are enough.
        rooms: Every server there is, whatever profile is served.
        lasting: Whether the process stays: a command that comes and goes takes no clicks of Slack.
        counts: Metrics.

    Raises:
        SettingsError: The file of approvers does not fit.
    """
    people, kept_url = await asyncio.to_thread(lambda: (people_of(settings), _kept_url(settings)))
    approvals = Approvals(
        settings=settings,
        stores=stores,
        secrets=secrets,
        auditor=auditor,
        policy=policy,
        people=people,
        rooms=rooms,
        counts=counts,
        kept_url=kept_url,
    )
    async with AsyncExitStack() as stack:
        approvals.waiters = await stack.enter_async_context(open_waiters(approvals.desk.get, stores.database_url))
        if settings.slack_bot_token is not None:
            approvals.slack = await stack.enter_async_context(slack_of(settings, stores, approvals, listen=lasting))
        yield approvals


def slack_of(
    settings: Settings, stores: Stores, approvals: Approvals, *, listen: bool
) -> AbstractAsyncContextManager[Slack | None]:
    """Slack over this process's approvals; with `listen` clicks are taken here."""
    from approvals.slack.opening import open_slack  # noqa: PLC0415 - imports aiohttp and slack_sdk, where Slack is set up

    return open_slack(
        settings,
        pool=stores.pool,
        desk=approvals.desk,
        people=approvals.people,
        pages=approvals.pages_url,
        failed=lambda: None,
        listen=listen,
        database_url=stores.database_url,
    )


def _kept_url(settings: Settings) -> str | None:
    """Where a hub of this data dir serves the pages over loopback now."""
    return None if settings.public_url is not None else Berth(settings).url()


def _definition(tool: Tool) -> str:
    return digest(
        {
            "name": tool.name,
            "title": tool.title,
            "description": tool.description,
            "arguments": tool.arguments.model_json_schema(),
            "annotations": annotations_of(tool).model_dump(mode="json", exclude_none=True),
            **({"defined": tool.defined} if tool.defined else {}),
        }
    )
