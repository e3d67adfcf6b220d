"""Owns listening to tasks: who named some hears how they stand at once, then whenever that changes, in the very words of tasks/get."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Literal, cast

import anyio
import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.session import ServerSession
from mcp.server.subscriptions import SUBSCRIPTION_ID_META_KEY, ListenHandler
from mcp.shared.exceptions import MCPError

from body_broker.calls import Caller
from body_broker.errors import BodyBrokerError, Denied, NotFound, Unauthenticated
from body_broker.work.moves import Follower
from mcp_servers.hub.events import EventBus
from mcp_servers.hub.tasks import Tasks, has_tasks, undeclared

METHOD = "notifications/tasks"
IDS_MAX = 50
"""Tasks in one listening: each is looked at when it begins."""
_ID_CHARACTERS_MAX = 80
_EVERY_S = 0.5
"""A storm of progress is told twice a second; what moves after a while of quiet is told at once."""
_AGAIN_S, _AGAIN_MAX_S = 1.0, 30.0

Context = ServerRequestContext[Any, Any]
Told = dict[str, dict[str, Any]]


class TaskNotification(types.Notification[dict[str, Any], Literal["notifications/tasks"]]):
    """How a task stands, as tasks/get would say it at this moment (SEP-2663)."""

    method: Literal["notifications/tasks"] = METHOD
    params: dict[str, Any]


class TaskListening:
    """`subscriptions/listen` with the tasks extension's `taskIds`; everything else of it is the SDK's handler's.

    Args:
        handler: Acknowledges, and sends what is not about tasks.
        tasks: Looked at through the gate, as the caller: decided, limited, on the audit, and text from outside taints.
        bus: Says which have moved.
        caller_of: Who listens.
        still: Raises where what a caller came with was revoked.
        clock: Unix seconds.
    """

    def __init__(
        self,
        handler: ListenHandler,
        tasks: Tasks,
        bus: EventBus,
        caller_of: Callable[[Context], Awaitable[Caller]],
        still: Callable[[Caller], Awaitable[None]],
        *,
        clock: Callable[[], float] = time.time,  # noqa: TID251 - the parameter's default
    ) -> None:
        self._handler, self._tasks, self._bus = handler, tasks, bus
        self._caller_of, self._still, self._clock = caller_of, still, clock

    async def __call__(
        self, ctx: Context, params: types.SubscriptionsListenRequestParams
    ) -> types.SubscriptionsListenResult:
        """Serve one stream; of the tasks that it names, those that are none of this caller's are left out of what is agreed to.

        Raises:
            MCPError: It names tasks without the extension, or too many, or what no task's id is.
            Unauthenticated: The caller's token ended, or was revoked: nothing more is told.
        """
        wanted = _wanted(ctx, params)
        if not wanted or self._bus.moves is None:
            return await self._handler(ctx, params)
        async with self._bus.moves.following(wanted) as follower:
            told = await self._found(ctx, wanted)
            if not told:
                return await self._handler(ctx, params)
            session = _Acknowledging(ctx.session, list(told))
            heard = replace(ctx, session=cast("ServerSession", session))
            result: types.SubscriptionsListenResult | None = None
            try:
                async with anyio.create_task_group() as group:
                    group.start_soon(self._tell, ctx, follower, told, session.acknowledged)
                    result = await self._handler(heard, params)
                    group.cancel_scope.cancel()
            except ExceptionGroup as failed:  # of one: whichever side fails ends the other
                raise failed.exceptions[0] from failed
            assert result is not None
            return result

    async def _found(self, ctx: Context, wanted: list[str]) -> Told:
        caller, found = await self._caller(ctx), Told()
        for each in wanted:
            try:
                found[each] = await self._tasks.get(each, caller)
            except (NotFound, Denied):
                continue
        return found

    async def _tell(self, ctx: Context, follower: Follower, told: Told, acknowledged: anyio.Event) -> None:
        await acknowledged.wait()
        for each, task in list(told.items()):
            # First as they stand: what ended before it was listened to would never be heard of.
            await self._send(ctx, each, task, told)
        while told:
            await anyio.sleep(_EVERY_S)
            for each in await follower.moved():
                if each in told:
                    await self._look(ctx, each, follower, told)

    async def _look(self, ctx: Context, task_id: str, follower: Follower, told: Told) -> None:
        try:
            task = await self._tasks.get(task_id, await self._caller(ctx))
        except Unauthenticated:
            raise
        except BodyBrokerError as error:
            if not error.retryable:  # it is not kept any more
                told.pop(task_id)
                return
            follower.note(task_id)
            await anyio.sleep(min(error.retry_after_s or _AGAIN_S, _AGAIN_MAX_S))
            return
        if task != told[task_id]:
            await self._send(ctx, task_id, task, told)

    async def _send(self, ctx: Context, task_id: str, task: dict[str, Any], told: Told) -> None:
        facts = {name: value for name, value in task.items() if name != "resultType"}
        meta = {SUBSCRIPTION_ID_META_KEY: ctx.request_id}
        # The SDK's type has the notifications of the protocol itself; an extension's goes out as it is.
        notification = cast("types.ServerNotification", TaskNotification(params=facts | {"_meta": meta}))
        await ctx.session.send_notification(notification, related_request_id=ctx.request_id)
        if task["status"] == "working":
            told[task_id] = task
        else:
            told.pop(task_id)  # nothing more comes of it

    async def _caller(self, ctx: Context) -> Caller:
        """Who listens, if still."""
        caller = await self._caller_of(ctx)
        if caller.expires_at is not None and caller.expires_at <= self._clock():
            raise Unauthenticated("The token has expired.")
        await self._still(caller)
        return caller


class _Acknowledging:
    """A session as the SDK's handler sees it: the tasks that are listened to join what it acknowledges."""

    def __init__(self, session: ServerSession, task_ids: list[str]) -> None:
        self._session, self._task_ids = session, task_ids
        self.acknowledged = anyio.Event()

    async def send_notification(
        self, notification: types.ServerNotification, related_request_id: types.RequestId | None = None
    ) -> None:
        """Send one."""
        if isinstance(notification, types.SubscriptionsAcknowledgedNotification):
            honored = notification.params.notifications.model_copy(update={"taskIds": self._task_ids})
            params = notification.params.model_copy(update={"notifications": honored})
            notification = types.SubscriptionsAcknowledgedNotification(params=params)
        await self._session.send_notification(notification, related_request_id)
        self.acknowledged.set()


def _wanted(ctx: Context, params: types.SubscriptionsListenRequestParams) -> list[str]:
    """The ids of the tasks that it names, each once."""
    named: object = (params.notifications.model_extra or {}).get("taskIds")
    if named is None or named == []:
        return []
    if not has_tasks(ctx):
        raise undeclared("Listening to tasks")
    ids = cast("list[object]", named) if isinstance(named, list) else [named]
    wanted = [each for each in ids if isinstance(each, str) and 0 < len(each) <= _ID_CHARACTERS_MAX]
    if not isinstance(named, list) or len(wanted) < len(ids) or len(ids) > IDS_MAX:
        raise MCPError(
            code=types.INVALID_PARAMS, message=f"bad_input: taskIds is a list of at most {IDS_MAX} ids of tasks."
        )
    return list(dict.fromkeys(wanted))
