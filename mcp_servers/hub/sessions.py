"""Owns what a session has read and done: in Redis, with a witness in PostgreSQL; what cannot be proved clean is tainted."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from body_broker.background import running
from body_broker.calls import Caller
from body_broker.errors import Conflict, Unavailable
from body_broker.storage.postgres import Pool
from body_broker.storage.redis import Redis
from body_broker.telemetry import get_logger
from mcp_servers.hub.session_store import CONVERSATION_EXPIRY_S, FAILURES, SOURCES_MAX, Found, Session, SessionStore

log = get_logger(__name__)

REMEMBERED_MAX = 10_000
REMEMBERED_S = 1.0
_RETRY_S = 1.0
_FLUSH_AT_CLOSE_S = 5.0


@dataclass(frozen=True, slots=True)
class SessionState:
    """What decides on a call: whether text from outside was read, and the granting groups of what was done.

    `sources` decides nothing: the operations that gave the text, the newest first, a few at most, for people who are asked. Where `known` is
    false the stores could not be read: the session counts as tainted, and nobody is asked for its calls until it is known.
    """

    tainted: bool
    history: frozenset[str]
    sources: tuple[str, ...] = field(default=(), compare=False)
    known: bool = field(default=True, compare=False)


_CLEAN = SessionState(tainted=False, history=frozenset())


class _Entry:
    """One session as this hub last saw it; times are monotonic seconds at which the asking began."""

    __slots__ = ("answered", "asked", "one_reader", "read_at", "state", "stored_at", "tainted_at")

    def __init__(self) -> None:
        self.one_reader = asyncio.Lock()
        self.asked = self.answered = 0  # numbers of the last question and the last answer
        self.state = _CLEAN
        self.read_at = float("-inf")
        self.stored_at = float("-inf")  # when its taint was last known to be in the stores
        self.tainted_at = float("-inf")  # when this hub itself tainted it

    def take(self, found: Found, began: float) -> None:
        """What the stores said of a question asked at `began`; what happened here since then stands."""
        tainted = self.state.tainted if began < self.read_at else found.tainted or self.tainted_at >= began
        sources = found.sources
        if self.tainted_at > began or began < self.read_at:
            sources = _newest(self.state.sources, sources)
        known = self.state.known if began < self.read_at else found.known
        self.state = SessionState(tainted, self.state.history | found.did, sources if tainted else (), known)
        self.read_at = max(self.read_at, began)
        if found.stored:
            self.stored_at = max(self.stored_at, began)


class Sessions:
    """Every session this hub has met lately; made by `open_sessions`.

    Args:
        store: Where sessions live.
        monotonic: Seconds, for how old a remembered state is.
    """

    def __init__(self, store: SessionStore, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._store, self._monotonic = store, monotonic
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._owed: dict[Session, set[str]] = {}
        self._owing = asyncio.Event()

    async def enter(self, caller: Caller, *, fresh: bool) -> SessionState:
        """What the caller's session has read and done; a conversation's includes its asker's sessions, live.

        State that cannot be read, or is missing though the session had begun, counts as tainted. A service by itself is code
        and never tainted.

        Args:
            caller: Who calls.
            fresh: Ask the stores even if the state is remembered: for whatever taint gates.
        """
        state = await self._one(caller, caller.session, fresh=fresh)
        if caller.conversation_of is None:
            return SessionState(tainted=False, history=state.history) if state.tainted and _is_code(caller) else state
        tainted, history, sources, known = state.tainted, state.history, state.sources, state.known
        login = _login_of(caller)
        for session in (caller.conversation_of, *caller.ancestors):
            state = await self._one(caller, session, fresh=fresh)
            if state.tainted and not (session == login and _of_service(caller)):
                tainted, sources = True, _newest(sources, state.sources)
            history, known = history | state.history, known and state.known
        return SessionState(tainted, history, sources, known)

    async def taint(self, caller: Caller, source: str) -> None:
        """The session has read text from outside: stored when this returns, so await it before the answer leaves.

        Args:
            caller: Whose session it is; a conversation's taint stays its own.
            source: The operation that gave the text.

        Raises:
            Unavailable: It could not be stored; the answer must not leave.
        """
        if _is_code(caller):
            return
        entry, began = self._entry(caller.session), self._monotonic()
        stored = began - entry.stored_at <= REMEMBERED_S
        if stored and source in entry.state.sources:
            return
        try:
            await self._store.taint(_session(caller, caller.session), source)
        except FAILURES as error:
            if stored:  # that it is tainted is; only one more name for people is not
                log.warning("session_taint_not_named", error=type(error).__name__)
                return
            raise Unavailable(
                "That this session has now read text from outside could not be stored, so the answer is withheld.",
                details={"component": "postgres"},
            ) from error
        sources = _newest((source,), entry.state.sources)
        entry.state = SessionState(tainted=True, history=entry.state.history, sources=sources)
        # A reading that began before this moment may not have seen it.
        entry.stored_at, entry.tainted_at = began, self._monotonic()

    def record(self, caller: Caller, group: str) -> None:
        """The session did something of this granting group; seen at once here, stored a moment later."""
        entry = self._entry(caller.session)
        if group in entry.state.history:
            return
        entry.state = replace(entry.state, history=entry.state.history | {group})
        self._owed.setdefault(_session(caller, caller.session), set()).add(group)
        self._owing.set()

    async def clear(self, session: str, *, by: str) -> None:
        """A person takes a login's taint away; for operators only, never a tool. Takes a little over a second.

        Args:
            session: The session's id.
            by: Who clears it, for the record.

        Raises:
            NotFound: There is no such session.
            Conflict: It read text from outside again meanwhile.
            Unavailable: A store is down; the session stays tainted.
        """
        try:
            mark = await self._store.begin_clearing(session)
            # Hubs that remember the taint as stored do not store it again: wait until none remembers.
            await asyncio.sleep(REMEMBERED_S * 1.2)
            cleared = await self._store.finish_clearing(session, mark, by)
        except FAILURES as error:
            raise Unavailable("A store is down; the session stays tainted.", details={"component": "stores"}) from error
        if not cleared:
            raise Conflict("The session read text from outside again while it was being cleared.")
        self._entries.pop(session, None)

    async def write_history(self) -> None:
        """Store what `record` noted, as it comes, until cancelled."""
        while True:
            await self._owing.wait()
            self._owing.clear()
            if not await self._write_owed():
                await asyncio.sleep(_RETRY_S)
                self._owing.set()

    async def settle(self) -> None:
        """Store what is still owed; called once, when no call is left."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_AT_CLOSE_S):
                await self._write_owed()

    async def _write_owed(self) -> bool:
        for session, owed in list(self._owed.items()):
            groups = frozenset(owed)
            try:
                await self._store.record(session, groups)
            except (*FAILURES, Unavailable) as error:
                log.warning("session_history_not_stored", error=type(error).__name__)
                return False
            owed.difference_update(groups)
            if not owed:
                del self._owed[session]
        return True

    async def _one(self, caller: Caller, session: str, *, fresh: bool) -> SessionState:
        began = self._monotonic()
        entry = self._entries.get(session)
        if entry is None:
            entry = self._entry(session)
        else:
            self._entries.move_to_end(session)
        if fresh or began - entry.read_at > REMEMBERED_S:
            await self._ask(entry, _session(caller, session))
        return entry.state

    async def _ask(self, entry: _Entry, session: Session) -> None:
        """Ask the stores once; who comes while somebody asks shares an answer whose asking began after they came."""
        came = entry.asked
        async with entry.one_reader:
            if entry.answered <= came:
                entry.asked = number = entry.asked + 1
                began = self._monotonic()
                entry.take(await self._store.read(session), began)
                entry.answered = number

    def _entry(self, session: str) -> _Entry:
        entry = self._entries.get(session)
        if entry is None:
            entry = self._entries[session] = _Entry()
            if len(self._entries) > REMEMBERED_MAX:
                self._entries.popitem(last=False)
        return entry


@asynccontextmanager
async def open_sessions(
    redis: Redis, pool: Pool, monotonic: Callable[[], float] = time.monotonic
) -> AsyncGenerator[Sessions]:
    """Sessions whose history is being stored until the way out."""
    sessions = Sessions(SessionStore(redis, pool), monotonic)
    try:
        async with running(sessions.write_history(), name="session-history"):
            yield sessions
    finally:
        await sessions.settle()


def _newest(first: tuple[str, ...], then: tuple[str, ...]) -> tuple[str, ...]:
    """Both without doubles, as many as are kept."""
    return tuple(dict.fromkeys((*first, *then)))[:SOURCES_MAX]


def _login_of(caller: Caller) -> str:
    return (caller.session, caller.conversation_of or caller.session, *caller.ancestors)[-1]


def _session(caller: Caller, session: str) -> Session:
    whose = caller.requester if session == caller.session else caller.asker
    if session == _login_of(caller):
        return Session(session, whose)
    return Session(session, whose, CONVERSATION_EXPIRY_S)


def _of_service(caller: Caller) -> bool:
    return caller.asker.startswith("service:")


def _is_code(caller: Caller) -> bool:
    return caller.conversation_of is None and len(caller.chain) == 1 and _of_service(caller)
