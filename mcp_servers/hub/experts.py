"""Owns the experts' jobs of one process: where their results lie, as whom a job acts, what runs it, and what wakes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from body_broker.calls import Caller, Json
from body_broker.errors import Denied, SettingsError, Unavailable
from body_broker.settings import Settings
from body_broker.storage.stores import Stores
from body_broker.work.run import Handler, Run
from body_broker.work.schedule import Schedule
from mcp_servers.hub import submitting
from mcp_servers.hub.generating import budget_facts
from mcp_servers.hub.identity import Identities
from mcp_servers.hub.inferring import Inferring
from mcp_servers.hub.objects_later import LaterObjects
from mcp_servers.hub.services import RoomServices
from mcp_servers.hub.tokens import ACTORS_MAX
from tiers.bronze import results
from tiers.bronze.model import KINDS, Assignment, Shape
from tiers.bronze.sagemaker.client import SageMakerClient
from tiers.hubtools import actor_of
from tiers.model import Asker, InferenceRequest, Tier

if TYPE_CHECKING:
    from tiers.bronze.runner import Runner

_ACTOR = actor_of(Tier.BRONZE)
_TOPIC = "job"
_ANY = InferenceRequest(prompt="a job", sla="async")
_SESSIONS_MAX = ACTORS_MAX + 1


def budget_of(inferring: Inferring) -> Callable[[Caller], Awaitable[frozenset[str]]]:
    """`async (caller) -> facts`: whether an expert's job may still be asked for on the caller's account."""

    async def budget(caller: Caller) -> frozenset[str]:
        return await budget_facts(_ANY, caller, inferring)

    return budget


@dataclass(frozen=True, slots=True)
class Standing:
    """What says as whom a job acts: who its asker is now, and what its conversation has read."""

    identities: Identities
    inferring: Inferring


class ExpertWork:
    """Runs the experts' jobs where a worker wants them run; closed by whoever made it.

    What asks models and AWS is loaded at the first job: a process that runs none pays nothing for it.

    Args:
        settings: Where experts are.
        stores: Open.
        objects: Where results lie.
        services: Every server's: what they make of answers, and what came of jobs.
        standing: As whom jobs act.

    Raises:
        SettingsError: The settings of SageMaker do not fit together.
    """

    def __init__(
        self, settings: Settings, stores: Stores, objects: LaterObjects, services: RoomServices, standing: Standing
    ) -> None:
        self._settings, self._stores, self._objects, self._results = settings, stores, objects, services.results
        self._shapes: Mapping[str, Shape] = {submitting.KIND: submitting.shape, **services.shapes()}
        self._identities, self._inferring = standing.identities, standing.inferring
        self._aws = client_of(settings)
        self._opening, self._runner, self._closed = asyncio.Lock(), None, False

    def handlers(self) -> Mapping[str, Handler]:
        """What a worker needs to run every kind of job, and to forget results."""
        return {**dict.fromkeys(KINDS, self._run), **self._results.handlers()}

    def schedules(self) -> tuple[Schedule, ...]:
        """The work that comes round by itself."""
        return results.schedules()

    def has_engine(self) -> bool:
        """Whether any engine that a job may come to has an address here."""
        catalogue = self._inferring.catalogue
        tiers = {Tier.BRONZE, *catalogue.after(Tier.BRONZE)}
        return any(spec.url is not None and spec.tier in tiers for spec in catalogue.engines.values())

    async def stands(self, run: Run) -> Asker:
        """For whom a job's model calls tools: its asker as they are now, in a conversation of the job's own.

        It is the same conversation whoever runs the job. What was outside when the job was asked for taints it before this returns.

        Raises:
            Unauthenticated: The login that it was asked for in was ended, or its token revoked, or tier:bronze's own login.
            Denied: Jobs asked for by jobs are too many deep.
            Unavailable: A store is down.
        """
        origin, given = run.origin, Assignment.parse(run.input)
        sessions = origin.sessions or (origin.session,)
        if len(sessions) > _SESSIONS_MAX:
            raise Denied(f"Jobs that jobs ask for may be {_SESSIONS_MAX} deep.", next_step="Ask for it directly.")
        acting = origin.chain if origin.chain[-1] == _ACTOR else (*origin.chain, _ACTOR)
        found = await self._identities.standing(acting, sessions, run.work.created_at, origin.tokens)
        asker = replace(
            found,
            chain=acting[:-1] or acting,
            depth=origin.depth,
            token_id=origin.tokens[-1] if origin.tokens else None,  # whose revocation ends the job's calls at once
        )
        return await self._inferring.act(
            asker,
            self._inferring.conversation(asker, _TOPIC, run.id),
            Tier.BRONZE,
            heard_outside=submitting.KIND if origin.tainted or given.outside else None,
        )

    @asynccontextmanager
    async def working(self) -> AsyncGenerator[None]:
        """Beside a worker: the place for results is looked for now, and an endpoint's notices are listened to.

        Raises:
            SettingsError: The setting names no place.
            NotConfigured: Its directory cannot be made.
            Unavailable: Its disk fails.
        """
        async with AsyncExitStack() as stack:
            await self._objects.ready()
            if self._aws is not None and self._settings.sagemaker_queue_url is not None:
                opening, queue = await asyncio.to_thread(_opening), self._settings.sagemaker_queue_url
                await stack.enter_async_context(opening.listening(self._aws, queue, self._stores.pool))
            yield

    async def close(self) -> None:
        """End what was opened; whoever ran jobs has handed them back by then."""
        async with self._opening:
            self._closed, self._runner = True, None
            if self._aws is not None:
                self._aws.close()
        await self._objects.close()

    async def _run(self, run: Run) -> Json:
        return await (await self._ready())(run)

    async def _ready(self) -> Runner:
        """What runs jobs, made now if none was run before.

        Raises:
            Unavailable: This process is stopping.
        """
        if self._runner is None:
            async with self._opening:
                if self._closed:
                    raise Unavailable("The experts of this hub are not open.", details={"component": "experts"})
                if self._runner is None:
                    self._runner = await self._make()
        return self._runner

    async def _make(self) -> Runner:
        tiers, opening = await self._inferring.tiers(), await asyncio.to_thread(_opening)
        return opening.make_runner(
            self._inferring.catalogue,
            tiers,
            pool=self._stores.pool,
            counts=self._inferring.counts,
            results=self._results,
            remote=None if self._aws is None else opening.remote_of(self._settings, self._aws),
            stands=self.stands,
            shapes=self._shapes,
        )


def _opening() -> Any:  # the module tiers.bronze.opening
    from tiers.bronze import opening  # noqa: PLC0415 - aiohttp and what else engines need, where jobs are run

    return opening


def client_of(settings: Settings) -> SageMakerClient | None:
    """What talks to AWS for an endpoint; None where there is none.

    Raises:
        SettingsError: Nobody would find its answers.
    """
    if settings.sagemaker_endpoint is None:
        return None
    if settings.sagemaker_output is None:
        raise SettingsError(
            "BODY_BROKER_SAGEMAKER_ENDPOINT is set, and BODY_BROKER_SAGEMAKER_OUTPUT is not: nobody would find its answers.",
            next_step="Set it to the S3OutputPath of the endpoint's configuration, such as s3://studio-experts/outputs.",
        )
    return SageMakerClient(region=settings.aws_region, endpoint_url=settings.aws_endpoint_url)
