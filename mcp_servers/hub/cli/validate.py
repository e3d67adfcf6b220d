"""The command `validate`: whether a tier's engines are up, serve their model, obey a grammar, are fast enough and call tools; of bronze also its places."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import click
import orjson

from body_broker.settings import Settings
from mcp_servers.hub.cli.context import data_dir_option, operator, record, run, settings_of
from mcp_servers.hub.experts import client_of
from mcp_servers.hub.objects_later import LaterObjects
from mcp_servers.hub.runtime import Runtime, open_runtime
from tiers.bronze.opening import remote_of
from tiers.bronze.validating import try_endpoint, try_results
from tiers.catalogue import EngineSpec
from tiers.chain import Chain
from tiers.cost import CostLedger
from tiers.counts import Counts
from tiers.engine import Engine
from tiers.model import Tier
from tiers.validating import REQUESTS, Check, Validation

_TIERS = (Tier.GOLD, Tier.SILVER, Tier.BRONZE, Tier.CLOUD)
_SHOWN = {"ok": "ok", "failed": "FAIL", "left out": "-"}
_HOW = {
    Tier.GOLD: "Set BODY_BROKER_GOLD_URL to the address of a trtllm-serve: `body-broker engine-profile gold` starts one.",
    Tier.SILVER: "Set BODY_BROKER_SILVER_URL to the address of a vLLM server, or of any with OpenAI's API and BODY_BROKER_SILVER_DIALECT.",
    Tier.BRONZE: "Set BODY_BROKER_BRONZE_URL to the address of vLLM or of any API with BODY_BROKER_BRONZE_DIALECT, or BODY_BROKER_SAGEMAKER_ENDPOINT.",
    Tier.CLOUD: "Set BODY_BROKER_OPENAI_API_KEY, BODY_BROKER_ANTHROPIC_API_KEY, or Azure's URL and key.",
}


@click.command()
@click.argument(
    "what", type=click.Choice([*(tier.value for tier in _TIERS), "all"]), metavar="gold|silver|bronze|cloud|all"
)
@click.option(
    "--requests",
    type=click.IntRange(1, 1_000),
    default=REQUESTS,
    show_default=True,
    help="How many requests latency is measured by.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON, when all is done.")
@data_dir_option
def validate(what: str, requests: int, data_dir: Path | None, *, as_json: bool) -> None:
    """Try the engines of a tier: exit code 1 where a check fails.

    Each engine that has an address is asked a few short questions. What paid ones cost is booked under the caps, on you.
    """
    tiers = _TIERS if what == "all" else (Tier(what),)
    checks = run(_validate(settings_of(data_dir), tiers, requests, tell=not as_json))
    if as_json:
        click.echo(orjson.dumps(checks, option=orjson.OPT_INDENT_2).decode())
    else:
        _sum_up(checks)
    if any(check.verdict == "failed" for check in checks):
        sys.exit(1)


async def _validate(settings: Settings, tiers: Sequence[Tier], requests: int, *, tell: bool) -> list[Check]:
    checks: list[Check] = []
    async with open_runtime(settings, name="cli") as runtime:
        specs = [spec for tier in tiers for spec in runtime.inferring.catalogue.of_tier(tier)]
        width = max(len(spec.name) for spec in specs)
        configured = [spec for spec in specs if spec.url is not None]
        if configured:
            await record(runtime, "tiers.validate", {"engines": ", ".join(spec.name for spec in configured)})

        async def found() -> AsyncGenerator[Check]:
            async for check in _engines(runtime, configured, requests):
                yield check
            if any(spec.tier is Tier.BRONZE for spec in configured):
                async for check in _places(settings):
                    yield check
            for check in _missing(tiers, specs, is_all_missing=not configured):
                yield check

        async for check in found():
            checks.append(check)
            if tell:
                click.echo(_line(check, width))
    return checks


async def _engines(runtime: Runtime, configured: Sequence[EngineSpec], requests: int) -> AsyncGenerator[Check]:
    """Each engine that answers at once; one that answers later is looked at, and not asked."""
    async with AsyncExitStack() as stack:
        caps = runtime.inferring.catalogue.caps
        opening = CostLedger.opened(runtime.stores.pool, caps, Counts(), engines=configured)
        chain = Chain(await stack.enter_async_context(opening), Counts())
        for spec in configured:
            if spec.dialect == "sagemaker":
                continue
            engine = Engine(spec, Counts())
            stack.push_async_callback(engine.close)
            async for check in Validation(engine, chain, tenant=operator(), requests=requests).run():
                yield check


async def _places(settings: Settings) -> AsyncGenerator[Check]:
    """What jobs of experts need beside engines: where results lie, and an endpoint's places and notices."""
    objects = LaterObjects(settings)
    try:
        yield await try_results(objects, str(settings.results or settings.data_dir / "results"))
    finally:
        await objects.close()
    if (client := client_of(settings)) is not None:
        try:
            async for check in try_endpoint(
                client, remote_of(settings, client).endpoint(), settings.sagemaker_queue_url
            ):
                yield check
        finally:
            client.close()


def _missing(tiers: Sequence[Tier], specs: Iterable[EngineSpec], *, is_all_missing: bool) -> list[Check]:
    """What has no address: a fault where nothing that was asked for has one, for then nothing was tried."""
    there = {spec.tier for spec in specs if spec.url is not None}
    return [
        Check(tier, "configured", "failed" if is_all_missing else "left out", "no engine has an address", _HOW[tier])
        for tier in tiers
        if tier not in there
    ]


def _line(check: Check, width: int) -> str:
    return f"{check.engine:<{width}}  {check.name:<10}  {_SHOWN[check.verdict]:<4}  {check.found}"


def _sum_up(checks: Sequence[Check]) -> None:
    of = {verdict: sum(check.verdict == verdict for check in checks) for verdict in _SHOWN}
    click.echo(f"{of['ok']} ok, {of['failed']} failed, {of['left out']} left out")
    for check in checks:
        if check.verdict == "failed":
            click.echo(f"{check.engine}, {check.name}: {check.next_step}")
