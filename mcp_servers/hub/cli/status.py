"""The command `status`: what this data dir or these stores hold, and whether each part answers."""

from __future__ import annotations

from pathlib import Path

import click

from approvals.slack.words import CONNECTED, CONNECTING
from body_broker.settings import Settings
from body_broker.storage.embedded import status as embedded_status
from body_broker.storage.postgres import Pool
from mcp_servers.hub.cli.context import data_dir_option, run, settings_of
from mcp_servers.hub.runtime import Runtime, open_runtime
from mcp_servers.hub.scanners import find_semgrep
from tiers.catalogue import Catalogue
from tiers.cost import CostLedger
from tiers.counts import Counts

_COUNTS = """
SELECT (SELECT count(*) FROM audit_record) AS records, (SELECT count(*) FROM lore_document) AS documents,
       (SELECT count(*) FROM work WHERE state IN ('queued', 'waiting')) AS queued, (SELECT count(*) FROM work WHERE state = 'running') AS running,
       (SELECT count(*) FROM work WHERE state = 'unknown') AS unknown, (SELECT max(number) FROM schema_version) AS schema
"""
_APPROVALS = """
SELECT (SELECT count(*) FROM approval WHERE state = 'pending' AND expires_at > clock_timestamp()) AS pending,
       (SELECT count(*) FROM approval WHERE outcome = 'unknown') AS unknown,
       (SELECT count(*) FROM approval_notice WHERE failures > 0) AS failed,
       (SELECT failure FROM approval_notice WHERE failures > 0 ORDER BY failed_at DESC LIMIT 1) AS failure,
       (SELECT count(*) FROM approval a LEFT JOIN approval_notice n ON n.approval_id = a.id
        WHERE a.notify AND a.state = 'pending' AND a.expires_at > clock_timestamp() AND n.shown IS NULL
            AND a.created_at < clock_timestamp() - interval '60 seconds') AS unseen
"""
_LISTENING = """
SELECT application_name = $1 AS connected, state_change FROM pg_stat_activity
WHERE datname = current_database() AND application_name IN ($1, $2) ORDER BY 1 DESC LIMIT 1
"""


@click.command()
@data_dir_option
def status(data_dir: Path | None) -> None:
    """Show stores, schema, what is in them, and what is not configured."""
    settings = settings_of(data_dir)
    click.echo(run(_status(settings)))


async def _status(settings: Settings) -> str:
    async with open_runtime(settings, name="cli") as runtime:
        approvals = [
            ("approvals", await approvals_line(runtime.stores.pool)),
            ("slack", await slack_line(runtime.stores.pool, settings)),
        ]
        models = [("models", await models_line(runtime.stores.pool, runtime.inferring.catalogue))]
        rows = [*await _stores(runtime), *approvals, *models, *_served(runtime)]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {text}" for name, text in rows)


async def _stores(runtime: Runtime) -> list[tuple[str, str]]:
    settings, pool = runtime.settings, runtime.stores.pool
    found = await pool.fetchrow(_COUNTS)
    assert found is not None
    version = await pool.fetchval("SHOW server_version")
    keeper = embedded_status(settings.data_dir) if settings.embedded else None
    where = f"embedded in {settings.data_dir}" if keeper else "BODY_BROKER_DATABASE_URL"
    return [
        ("postgres", f"{version}, schema {found['schema']}, {where}"),
        ("redis", "BODY_BROKER_REDIS_URL" if settings.redis_url else "embedded Valkey"),
        ("lore", f"{found['documents']} documents"),
        ("jobs", f"{found['queued']} queued, {found['running']} running, {found['unknown']} unknown"),
        ("audit", f"{found['records']} records"),
    ]


async def approvals_line(pool: Pool) -> str:
    """What waits for people, what only a person can settle, and notices that did not get through."""
    found = await pool.fetchrow(_APPROVALS)
    assert found is not None
    said = f"{found['pending']} pending, {found['unknown']} unknown, {found['failed']} failed notices"
    if found["unknown"]:
        said += "; body-broker approvals resolve settles what is unknown"
    if found["failed"]:
        said += f"; the last notice failed with {found['failure']}: body-broker slack check"
    if found["unseen"]:
        said += (
            f"; {found['unseen']} wait for people and were not shown in Slack for a minute: "
            "does a hub or worker with BODY_BROKER_SLACK_BOT_TOKEN run?"
        )
    return said


async def slack_line(pool: Pool, settings: Settings) -> str:
    """Whether any process of these stores hears what people click."""
    if settings.slack_bot_token is None:
        return "not set up: docs/approvals.md"
    if settings.slack_app_token is None:
        return "clicks come over signed HTTP"
    found = await pool.fetchrow(_LISTENING, CONNECTED, CONNECTING)
    if found is None:
        return "NOT CONNECTED: no hub that listens for clicks runs"
    if not found["connected"]:
        return "NOT CONNECTED: a hub tries to reach Slack; body-broker slack check"
    return f"connected since {found['state_change']:%Y-%m-%d %H:%M:%S} UTC"


async def models_line(pool: Pool, catalogue: Catalogue) -> str:
    """Which engines have an address, and what was taken of today's money, over all hubs."""
    engines = [spec for spec in catalogue.engines.values() if spec.url is not None]
    if not engines:
        return "none configured: docs/tiers.md"
    caps = catalogue.caps.tier_day
    sums = {each.tier: each for each in await CostLedger(pool, catalogue.caps, Counts()).figures() if each.asker == "*"}
    paid = dict.fromkeys(spec.tier for spec in engines if spec.price is not None)
    money = [
        f"{tier} {each.spent_usd if (each := sums.get(tier)) else 0:.4f} of {caps[tier]:.2f} US dollars today"
        if tier in caps
        else f"{tier} has no cap for money, so nothing that costs is asked: set caps.tier_day in models.toml"
        for tier in paid
    ]
    return "; ".join([", ".join(spec.name for spec in engines), *money])


def _served(runtime: Runtime) -> list[tuple[str, str]]:
    entries = runtime.gate.policy.catalogue.entries
    semgrep = find_semgrep(runtime.settings.data_dir)
    return [
        ("servers", ", ".join(f"{room.name} ({len(room.tools)} tools)" for room in runtime.rooms)),
        ("policy", f"{len(entries)} operations classified, digest {runtime.gate.policy.digest[:16]}"),
        ("semgrep", "found" if semgrep else "not installed: body-broker scanners install"),
    ]
