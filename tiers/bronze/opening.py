"""Owns putting together what runs the experts' jobs of one process: who is asked, what is called, and what is listened to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from body_broker.settings import Settings
from body_broker.storage.postgres import Pool
from body_broker.work.run import Run
from tiers.bronze.asking import Experts
from tiers.bronze.calls import CallStore
from tiers.bronze.local import LocalWorkerBackend
from tiers.bronze.model import Shape
from tiers.bronze.results import Results
from tiers.bronze.runner import Runner
from tiers.bronze.sagemaker.backend import SageMakerAsyncBackend, SageMakerEndpoint
from tiers.bronze.sagemaker.client import SageMakerClient
from tiers.bronze.sagemaker.notices import SageMakerNotices
from tiers.bronze.sagemaker.places import Place
from tiers.catalogue import Catalogue
from tiers.counts import Counts
from tiers.model import Asker
from tiers.opening import Tiers


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """An endpoint that answers later, as the settings have it; places are s3://bucket/prefix.

    Attributes:
        client: Talks to AWS.
        name, output, failures, input, ttl_s, timeout_s, poll_s: As `SageMakerEndpoint` has them.
    """

    client: SageMakerClient
    name: str
    output: str
    failures: str | None
    input: str | None
    ttl_s: int
    timeout_s: int
    poll_s: float

    def endpoint(self) -> SageMakerEndpoint:
        """The same as its backend takes it."""
        return SageMakerEndpoint(
            name=self.name,
            output=_place(self.output),
            failures=None if self.failures is None else _place(self.failures),
            input=None if self.input is None else _place(self.input),
            ttl_s=self.ttl_s,
            timeout_s=self.timeout_s,
            poll_s=self.poll_s,
        )


def remote_of(settings: Settings, client: SageMakerClient) -> Remote:
    """The endpoint that the settings name, asked by this client."""
    assert settings.sagemaker_endpoint is not None, "there is no client without an endpoint"
    assert settings.sagemaker_output is not None, "the client was refused without it"
    return Remote(
        client=client,
        name=settings.sagemaker_endpoint,
        output=settings.sagemaker_output,
        failures=settings.sagemaker_failures,
        input=settings.sagemaker_input,
        ttl_s=settings.sagemaker_ttl_s,
        timeout_s=settings.sagemaker_timeout_s,
        poll_s=settings.sagemaker_poll_s,
    )


def make_runner(
    catalogue: Catalogue,
    tiers: Tiers,
    *,
    pool: Pool,
    counts: Counts,
    results: Results,
    remote: Remote | None,
    stands: Callable[[Run], Awaitable[Asker]],
    shapes: Mapping[str, Shape],
) -> Runner:
    """What runs jobs.

    Args:
        catalogue: Engines and roles.
        tiers: Open: their engines, money and tools.
        pool: Of the database with the jobs.
        counts: Takes measurements.
        results: Where what comes of jobs goes.
        remote: The endpoint that answers later; None where there is none.
        stands: Says for whom a job's model calls tools.
        shapes: What makes a result of the answers, by kind.
    """
    calls, ledger = CallStore(pool, counts), tiers.ledger
    backend = None if remote is None else SageMakerAsyncBackend(remote.endpoint(), remote.client, calls, ledger)
    experts = Experts(
        catalogue,
        tiers.engines,
        calls=calls,
        local=LocalWorkerBackend(calls, ledger),
        endpoint=backend,
        money=ledger.words,
        counts=counts,
    )
    return Runner(experts=experts, results=results, tools=lambda: tiers.tools, stands=stands, shapes=shapes)


def listening(client: SageMakerClient, queue_url: str, pool: Pool) -> AbstractAsyncContextManager[None]:
    """An endpoint's notices are listened to until the way out."""
    return SageMakerNotices(client, queue_url, pool).listening()


def _place(text: str) -> Place:
    found = Place.parse(text)
    assert found is not None, "the setting's pattern holds it"
    return found
