"""Owns a tools/call between its parameters and its result in MCP's form: run by the gate, told as a result, a task or an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from body_broker.calls import Caller, Json, Progress
from body_broker.errors import ApprovalPending, BodyBrokerError
from body_broker.inputs import AskClient
from mcp_servers.hub.gate import Gate
from mcp_servers.hub.requests import Request, no_progress, patience_of
from mcp_servers.hub.rounds import BadRound, input_required
from mcp_servers.hub.tasks import Tasks
from mcp_servers.hub.wire import protocol_error, tool_error, tool_result


class Calling:
    """Runs calls of tools, however they were read.

    Args:
        gate: Runs every one.
        tasks: Where approvals and jobs are tasks.
    """

    def __init__(self, gate: Gate, tasks: Tasks) -> None:
        self._gate, self._tasks = gate, tasks

    async def called(
        self,
        caller: Caller,
        name: str,
        arguments: Json,
        params: Mapping[str, Any] | None,
        *,
        modern: bool,
        task: bool = False,
        progress: Progress = no_progress,
    ) -> dict[str, Any]:
        """The result of one call; errors are results too.

        Args:
            caller: Who calls.
            name: What they call.
            arguments: As they came.
            params: All parameters as they came.
            modern: Whether the client's revision lets it be asked for input; older ones are never asked.
            task: Whether it may be answered with a task.
            progress: Hears how far it is.

        Raises:
            MCPError: What no result can say.
        """
        sent = params if modern else None
        try:
            answer = await self._gate.run(
                Request(
                    name=name,
                    kind="tool",
                    arguments=arguments,
                    caller=caller,
                    progress=progress,
                    sent=sent,
                    patience=patience_of(params, task=task),
                )
            )
            job = answer.result.handle() if task else None
            return tool_result(answer) if job is None else await self._tasks.created(job, caller)
        except ApprovalPending as pending:
            return await self._pending(pending, caller) if task else tool_error(pending)
        except AskClient as ask:
            return tool_error(ask) if sent is None else input_required(ask, sent)
        except BadRound as error:
            raise protocol_error(error) from None
        except BodyBrokerError as error:
            return tool_error(error)

    async def _pending(self, pending: ApprovalPending, caller: Caller) -> dict[str, Any]:
        try:
            return await self._tasks.created(str(pending.details["approval"]), caller)
        except BodyBrokerError as error:
            return tool_error(error)
