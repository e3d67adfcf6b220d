"""Owns the bronze tier as the router knows it: what is asked of experts becomes a job, by the hub's own tools, as whoever asks."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol, cast

import orjson

from body_broker.calls import Caller, Json
from body_broker.errors import BadInput, BodyBrokerError
from body_broker.telemetry import get_logger
from tiers.bronze.model import Priority
from tiers.catalogue import Catalogue
from tiers.counts import Counts
from tiers.deadline import Deadline
from tiers.model import Asker, InferenceRequest, InferenceResult, Listener, Message, Tier
from tiers.prompting import in_persona
from tiers.router import Decision
from tiers.silver.personas import Persona, persona_named

log = get_logger(__name__)

SUBMIT, GET = "submit_job", "get_job"
_ALIVE = frozenset({"waiting", "queued", "running", "succeeded"})
_INSTEAD_S = 1.0
"""How long whoever gets no answer waits to hear of a job that goes on with it."""
_NOBODY_S_TOOLS = frozenset({"auto", "none"})


class HubCalls(Protocol):
    """The hub's tools, called as somebody who is in a call already: through the same gate, one call deeper."""

    def may(self, caller: Caller, tool: str) -> bool:
        """Whether the caller is shown a tool of which people are never asked; nothing is on record for the question."""
        ...

    async def call(self, caller: Caller, tool: str, arguments: Mapping[str, Json]) -> Mapping[str, Json]:
        """The structured result of one call.

        Raises:
            BodyBrokerError: Whatever refused it or went wrong.
        """
        ...


@dataclass(frozen=True, slots=True)
class Submitted:
    """A job that was asked for: its id, by both names that the source documents have for it, and its state."""

    id: str
    status: str

    @property
    def job_id(self) -> str:
        """The id."""
        return self.id


class BronzeTier:
    """The tier of experts (seed `bronze_tier`). Nothing is answered here: every request is a job of whoever asks.

    Args:
        calls: The hub's tools.
        catalogue: Engines and roles.
        counts: Takes measurements.
    """

    def __init__(self, calls: HubCalls, catalogue: Catalogue, counts: Counts) -> None:
        self._calls, self._roles, self._counts = calls, frozenset(catalogue.roles), counts
        # An engine may have the tier's name: then the tier is meant.
        self._engines = frozenset(catalogue.engines) - {tier.value for tier in Tier}
        self._has_experts = any(spec.url is not None for spec in catalogue.of_tier(Tier.BRONZE))

    async def execute(
        self,
        request: InferenceRequest,
        decision: Decision,
        *,
        asker: Asker,
        deadline: Deadline,
        listener: Listener | None = None,
    ) -> InferenceResult:
        """The job that does it, named in the text and in `job`; who would be asked is found out when it runs.

        `latency_budget_ms` is the caller's patience for this answer, not the job's: the source documents give a story arc 5 s.

        Raises:
            BadInput: It asks for what a job cannot have.
            NotConfigured: No engine of the tier's chain has an address.
            BodyBrokerError: Whatever else refuses `submit_job` to this asker.
        """
        del deadline, listener  # asking for it takes milliseconds; how it goes is for the job to say
        now = asyncio.get_running_loop().time
        began = now()
        job = await self.submit_async(request, asker=asker)
        seconds = now() - began
        self._counts.answered(Tier.BRONZE, "job", seconds)
        return InferenceResult(
            text=f"The job {job.id} does this. get_job(id={job.id}) says how it stands, and has its answer.",
            tier=Tier.BRONZE,
            engine=None,
            model=None,
            source="job",
            reason=decision.reason,
            seconds=seconds,
            job=job.id,
        )

    async def submit_async(
        self,
        request: InferenceRequest,
        *,
        asker: Asker,
        priority: Priority | None = None,
        idempotency_key: str | None = None,
    ) -> Submitted:
        """A job for a request as the router takes it.

        Raises:
            BadInput: It asks for what a job cannot have.
            BodyBrokerError: Whatever refuses `submit_job` to this asker.
        """
        persona = None if request.persona is None else await persona_named(request.persona)
        _check(request, persona)
        wanted = self._wanted(request, persona)
        wanted["priority"] = priority or ("low" if request.priority == "background" else "normal")
        if idempotency_key is not None:
            wanted["idempotency_key"] = idempotency_key
        return await self._submit(wanted, asker)

    async def submit_job(
        self,
        model: str,
        prompt: str,
        max_tokens: int = 2_000,
        tools: Sequence[str] | None = None,
        *,
        asker: Asker,
    ) -> Submitted:
        """A job as the source documents ask for one; `model` is a role of models.toml, or an engine.

        Raises:
            BodyBrokerError: Whatever refuses `submit_job` to this asker.
        """
        named = {"role" if model in self._roles else "model": model}
        wanted: dict[str, Json] = {**named, "prompt": prompt, "max_tokens": max_tokens}
        if tools is not None:
            wanted["tools"] = list(tools)
        return await self._submit(wanted, asker)

    async def get_result(self, job_id: str, *, asker: Asker) -> Mapping[str, Json] | None:
        """What came of a job of the asker's; None while it goes on, or where nothing came of it. Nothing is waited for.

        Raises:
            NotFound: There is no such job, or it is somebody else's.
        """
        found = await self._calls.call(asker.caller, GET, {"id": job_id})
        return cast("Mapping[str, Json] | None", found["result"])

    retrieve_result = get_result  # by the other name that the source documents have for it

    async def instead(self, request: InferenceRequest, asker: Asker) -> Submitted | None:
        """A job that goes on with what no engine of another tier answered now; None where there is to be none.

        Only where the tier has an engine of its own, and for somebody who asks for themselves, may have jobs, and waited for an
        answer: not for players, for NPCs, or for what comes too late anyhow. The same request is the same job for a day.
        """
        caller = asker.caller
        if not self._has_experts or request.sla != "interactive" or request.npc_id is not None or len(caller.chain) > 1:
            return None
        if not self._calls.may(caller, SUBMIT):
            return None
        try:
            async with asyncio.timeout(_INSTEAD_S):
                key = _key(request)
                job = await self.submit_async(
                    replace(request, latency_budget_ms=None, model=None),
                    asker=asker,
                    priority="low",
                    idempotency_key=key,
                )
        except (BodyBrokerError, TimeoutError) as error:
            why = error.code if isinstance(error, BodyBrokerError) else "timeout"
            log.info("no_job_instead", reason=why)
            return None
        return job if job.status in _ALIVE else None

    def _wanted(self, request: InferenceRequest, persona: Persona | None) -> dict[str, Json]:
        """The arguments of `submit_job`."""
        messages, temperature = request.conversation(), request.temperature
        if persona is not None:
            messages = in_persona(messages, persona)
            temperature = persona.temperature if temperature is None else temperature
        budget: dict[str, Json] = {}
        if request.cost_ceiling is not None:
            budget["usd"] = request.cost_ceiling
        tools = () if request.tool_choice == "none" else request.tools
        return {
            "messages": [_turn(message) for message in messages],
            "role": request.role,
            "model": request.model if request.model in self._engines else None,
            "max_tokens": request.max_tokens,
            "tools": None if tools is None else list(tools),
            "response_schema": None if request.schema is None else dict(request.schema),
            "temperature": temperature,
            "seed": request.seed,
            "stop": list(request.stop),
            "cost_sensitivity": request.cost_sensitivity,
            "budget": budget,
        }

    async def _submit(self, wanted: Mapping[str, Json], asker: Asker) -> Submitted:
        found = await self._calls.call(asker.caller, SUBMIT, wanted)
        return Submitted(str(found["job_id"]), str(found["status"]))


def _check(request: InferenceRequest, persona: Persona | None) -> None:
    """Refuse what a job has no place for, rather than leave it out."""
    lacking = {
        "own_tools": bool(request.offers),
        "choices": bool(request.choices),
        "tool_choice": request.tool_choice not in _NOBODY_S_TOOLS,
        "npc_id": request.npc_id is not None,
        "persona": persona is not None and persona.outside,
    }
    if not (found := [name for name, is_wanted in lacking.items() if is_wanted]):
        return
    raise BadInput(
        f"This is for the bronze tier, whose answers are jobs, and a job has no {', '.join(found)}.",
        next_step=(
            "Leave it out, or ask with sla interactive and without expert reasoning or a role of bronze: tools of your own and players "
            "do not wait for a job; for choices give a response_schema."
        ),
        details={"problems": [f"{name}: not in a job" for name in found]},
    )


def _turn(message: Message) -> dict[str, Any]:  # as the tools `generate` and `submit_job` have it
    calls = [{"id": call.id, "name": call.name, "arguments": call.arguments} for call in message.tool_calls]
    return {
        "role": message.role,
        "content": message.content,
        "tool_calls": calls,
        "tool_call_id": message.tool_call_id,
    }


def _key(request: InferenceRequest) -> str:
    """The same for the same request on the same day (UTC)."""
    asked = replace(request, latency_budget_ms=None, model=None, priority="normal")
    digest = hashlib.sha256(orjson.dumps(asked)).hexdigest()
    return f"instead {datetime.now(UTC):%Y-%m-%d} {digest}"
