"""The commands `backup` and `restore`: the embedded stores, keys and anchor in one file, and a data dir made from it."""

from __future__ import annotations

import hashlib
import sys
from importlib import metadata
from pathlib import Path

import click

from body_broker.audit.operators import record_operator
from body_broker.audit.verify import Report, verify
from body_broker.errors import BadInput, NotFound, SchemaTooNew, SettingsError
from body_broker.settings import Settings
from body_broker.storage import embedded
from body_broker.storage.archive import ROOT_KEY, Archive, Facts, new_file, open_archive
from body_broker.storage.backup import (
    ANCHOR_FILE,
    KEY_FILE,
    embedded_postgres,
    load_dump,
    new_data_dir,
    put_files,
    refuse_used,
    write_backup,
)
from body_broker.storage.embedded.binaries import POSTGRES_MAJOR
from body_broker.storage.migrations import migrate, migrations
from body_broker.storage.postgres import Pool, open_pool
from mcp_servers.hub.cli.audit import anchor_of, report_lines
from mcp_servers.hub.cli.context import data_dir_option, operator, run, settings_of
from mcp_servers.hub.secrets import Secrets

_NOW = """SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')"""
# What a session read after the backup is not in it, so no session of it may count as clean; nor may a login of it that began
# to be used after the backup, and therefore has no witness here.
_TAINT_EVERY_SESSION = """
INSERT INTO session_witness (session, requester, nonce)
SELECT sid, principal, '' FROM login WHERE ended_at IS NULL
UNION ALL
SELECT session, person, '' FROM oidc_login WHERE ended_at IS NULL
ON CONFLICT DO NOTHING
"""
_TAINT = (
    "UPDATE session_witness SET tainted_at = now(), tainted_by = 'restore', clearing = NULL WHERE tainted_at IS NULL"
)
# Tokens carry their signature, not a row: one that was issued after the backup would hold without a login that could end it.
_END_TOKENS = """
UPDATE signing_key SET retired_at = coalesce(retired_at, now()), verifies_until = least(verifies_until, now())
"""
_END_OIDC_LOGINS = "UPDATE oidc_login SET ended_at = now(), ended_by = 'restore' WHERE ended_at IS NULL"
_ANALYZE_S = 3600


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--force", is_flag=True, help="Replace FILE where it is there.")
@data_dir_option
def backup(file: Path, data_dir: Path | None, *, force: bool) -> None:
    """Write the embedded stores, the root key and the audit's anchor to FILE, a secret, while hubs go on serving."""
    settings = settings_of(data_dir)
    _refuse_servers(settings, "back it up")
    if not (settings.data_dir / "stores" / "postgres").is_dir():
        raise NotFound("There is nothing to back up in this data directory.", next_step="Name another one: --data-dir.")
    urls = embedded.start(settings.data_dir, valkey=settings.redis_url is None)
    try:
        with new_file(file, force=force) as handle:
            write_backup(
                handle,
                urls.database_url,
                run(_begin_backup(settings, urls.database_url)),
                root_key=None if settings.secret_key else settings.data_dir / KEY_FILE,
                anchor=anchor_of(settings),
                progress=_show,
            )
    finally:
        embedded.release(settings.data_dir)
    _end_progress()
    click.echo(f"Backup written: {file} ({file.stat().st_size} bytes).")
    if settings.secret_key:
        click.echo("BODY_BROKER_SECRET_KEY is not in it, and without it the backup is of no use: keep it too.")
    click.echo("It is a secret: whoever has it can read everything. Only this user can open it; keep it so.")


async def _begin_backup(settings: Settings, database_url: str) -> Facts:
    async with open_pool(database_url, connections_max=2, name="body-broker backup") as pool:
        schema = await migrate(pool)
        secrets = Secrets.load(settings)
        await record_operator(pool, secrets.derive("audit"), operator=_name(), action="backup")
        return Facts(
            program=metadata.version("body-broker"),
            schema=schema,
            postgres=POSTGRES_MAJOR,
            taken_at=await pool.fetchval(_NOW),
            key=fingerprint(secrets),
        )


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option(
    "--keep-tokens",
    is_flag=True,
    help="Let tokens hold; only where nothing was issued or revoked since the backup, as in a move.",
)
@data_dir_option
def restore(file: Path, data_dir: Path | None, *, keep_tokens: bool) -> None:
    """Make a data dir, empty or not there yet, from FILE; sessions are tainted then, and tokens have ended."""
    settings = settings_of(data_dir)
    _refuse_servers(settings, "restore it")
    refuse_used(settings.data_dir)
    anchor = _own_anchor(settings)
    with open_archive(file, _show) as archive:
        _refuse_misfits(archive, settings)
        with new_data_dir(settings.data_dir) as place:
            put_files(archive, place)
            there = settings.model_copy(update={"data_dir": place})
            with embedded_postgres(place) as url:
                load_dump(archive, url, _show)
                _end_progress()
                report = run(_finish(archive, there, url, keep_tokens=keep_tokens))
        _move_anchor(settings.data_dir, anchor)
    for line in report_lines(report):
        click.echo(line)
    _tell(archive.facts, settings, keep_tokens=keep_tokens)
    sys.exit(0 if report.intact else 1)


async def _finish(archive: Archive, settings: Settings, database_url: str, *, keep_tokens: bool) -> Report:
    facts = archive.facts
    async with open_pool(database_url, connections_max=2, name="body-broker restore") as pool:
        await migrate(pool)
        secrets = Secrets.load(settings)
        if fingerprint(secrets) != facts.key:
            raise BadInput("The backup's root key does not fit its manifest.", next_step="Take another backup.")
        key = secrets.derive("audit")
        details = {"taken_at": facts.taken_at, "schema": facts.schema, "keep_tokens": keep_tokens}
        await record_operator(pool, key, operator=_name(), action="restore", details=details)
        await _settle(pool, keep_tokens=keep_tokens)
        anchor = settings.data_dir / ANCHOR_FILE
        return await verify(pool, key, anchor if anchor.exists() else None)


async def _settle(pool: Pool, *, keep_tokens: bool) -> None:
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(_TAINT_EVERY_SESSION)
        await connection.execute(_TAINT)
        # A copy in OpenSearch belongs to the hub that was backed up, and knows revs that are given out anew here.
        await connection.execute("DELETE FROM lore_copy")
        if not keep_tokens:
            await connection.execute(_END_TOKENS)
            await connection.execute(_END_OIDC_LOGINS)
        # What a dump does not bring: without it the first searches are planned blindly.
        await connection.execute("SET LOCAL statement_timeout = 0")
        await connection.execute("ANALYZE", timeout=_ANALYZE_S)


def _refuse_servers(settings: Settings, doing: str) -> None:
    if not settings.embedded:
        raise SettingsError(
            "BODY_BROKER_DATABASE_URL is set: this command knows the embedded stores only.",
            next_step=f"With pg_dump and pg_restore, or the service's snapshots, {doing}; keep BODY_BROKER_SECRET_KEY and the anchor beside it (docs/deploy.md).",
        )


def _refuse_misfits(archive: Archive, settings: Settings) -> None:
    facts = archive.facts
    if facts.schema > (known := len(migrations())):
        raise SchemaTooNew(f"The backup has schema {facts.schema}; this program knows {known}.")
    if facts.postgres != POSTGRES_MAJOR:
        raise BadInput(
            f"The backup is of PostgreSQL {facts.postgres}; this program brings {POSTGRES_MAJOR}.",
            next_step=f"Restore it with body-broker {facts.program}.",
        )
    if settings.secret_key is None and ROOT_KEY not in archive.members:
        raise SettingsError(
            "The root key is not in this backup: it was a setting.",
            next_step="Set BODY_BROKER_SECRET_KEY to what it was when the backup was made.",
        )
    if settings.secret_key is not None and fingerprint(Secrets.load(settings)) != facts.key:
        raise SettingsError(
            "BODY_BROKER_SECRET_KEY is not the key of this backup.",
            next_step="Set it to what it was when the backup was made; where the key was a file, leave it out.",
        )


def _own_anchor(settings: Settings) -> Path | None:
    """Where the anchor goes when it does not lie in the data dir; a file that is there is evidence and is never touched."""
    if settings.audit_anchor is None:
        return None
    if settings.audit_anchor.exists():
        raise SettingsError(
            "The file of BODY_BROKER_AUDIT_ANCHOR exists: it may know records that the backup has not.",
            next_step="Move it aside and keep it: with the restored database's it says what was lost. Then restore again.",
        )
    return settings.audit_anchor


def _move_anchor(place: Path, anchor: Path | None) -> None:
    written = place / ANCHOR_FILE
    if anchor is None or not written.exists():
        return
    with new_file(anchor, force=False) as handle:
        handle.write(written.read_bytes())
    written.unlink()


def fingerprint(secrets: Secrets) -> str:
    """What a backup's manifest says of the root key it needs: enough to know it again, no help in finding it."""
    return hashlib.sha256(secrets.derive("backup-fingerprint")).hexdigest()


def _name() -> str:
    return operator().partition(":")[2]


def _tell(facts: Facts, settings: Settings, *, keep_tokens: bool) -> None:
    click.echo(f"Restored into {settings.data_dir} as it was at {facts.taken_at}. What came later is not in it:")
    click.echo("roles given or taken and documents imported since then must be given, taken and imported again.")
    click.echo("Every session counts as tainted; `body-broker token revoke --principal` lets one begin anew.")
    if keep_tokens:
        click.echo("Tokens hold again, those too that were revoked since: revoke them again.")
    else:
        click.echo(
            "Every token has ended, for one revoked since would hold again: `body-broker token issue` makes new ones."
        )


def _show(doing: str, done: int, total: int | None) -> None:
    """How far it is, on a terminal's stderr; nothing in a pipe."""
    if sys.stderr.isatty():
        share = f"{100 * done // total:3} % of {total >> 20} MiB" if total else f"{done >> 20} MiB"
        click.echo(f"\r{doing} {share:20}", nl=False, file=sys.stderr)


def _end_progress() -> None:
    if sys.stderr.isatty():
        click.echo(file=sys.stderr)
