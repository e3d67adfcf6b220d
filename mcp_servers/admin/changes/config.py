"""Owns the change of a tuning figure or feature flag: one key of the table behind get_config, held to its schema, with history."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import ConfigDict, Field

from body_broker.calls import Json
from body_broker.errors import Conflict, NotFound
from body_broker.storage.postgres import Connection
from body_broker.text import canonical_json, digest, quoted
from body_broker.tuning import Wanted
from mcp_servers.admin.changes.kind import Foreseen, Found, Kind, Maker, Params, Plan, Reach
from mcp_servers.admin.changes.showing import brief, difference, pretty


class SetConfig(Params):
    """The new value, and a new schema for it where that is to change."""

    model_config = ConfigDict(populate_by_name=True)

    value: Json
    json_schema: Annotated[dict[str, Json] | None, Field(alias="schema")] = None


@dataclass(frozen=True, slots=True)
class _Setting:
    """One key that would be set."""

    reach: Reach
    wanted: Wanted
    foreseen: Foreseen

    async def write(self, connection: Connection, maker: Maker) -> Json:
        """Set it, where it has the version that was foreseen."""
        present = self.wanted.present
        figure = await self.reach.tuning.set_within(
            connection,
            self.wanted,
            by=maker.requester,
            why=f"approved: {maker.key}",
            expect_version=present.version if present else 0,
            receipt=maker.receipt,
        )
        return {"version": figure.version, "value": digest(figure.value)}


async def _plan(reach: Reach, target: str, params: SetConfig) -> Plan:
    wanted = await reach.tuning.fit(target, params.value, schema=params.json_schema)
    present = wanted.present
    if present and canonical_json([present.value, present.schema]) == canonical_json([wanted.value, wanted.schema]):
        raise Conflict(f"{target} has this value already.", next_step="Nothing is to be changed, and nobody was asked.")
    kept = present.value if present else None
    diff = await difference(pretty(kept) if present else "", pretty(wanted.value))
    lines = [f"{target}, version {present.version}" if present else f"{target}, which is not set yet", diff]
    if canonical_json(wanted.schema) != canonical_json(present.schema if present else None):
        before = pretty(present.schema) if present and present.schema else ""
        lines += ["schema", await difference(before, pretty(wanted.schema) if wanted.schema else "")]
    foreseen = Foreseen(
        headline=f"Set {quoted(target)} to {brief(wanted.value)}",
        diff="\n".join(lines),
        basis=f"version {present.version if present else 0}",
    )
    return _Setting(reach, wanted, foreseen)


async def _read_back(reach: Reach, target: str, remembered: Json) -> Found:
    version = remembered["version"]
    try:
        figure = await reach.tuning.get(target)
    except NotFound:  # no key is ever taken away
        return Found(state="failed", text=f"There is no {target}, though it was set.")
    if figure.version == version and digest(figure.value) == remembered["value"]:
        return Found(state="done", text=f"{target} has version {version} with the value that was approved.")
    written = await reach.tuning.history(target, limit=1, before=version + 1)
    was = bool(written) and (written[0].version, digest(written[0].value)) == (version, remembered["value"])
    if was and figure.version > version:
        return Found(
            state="done", text=f"{target} was set as version {version}; it has version {figure.version} since."
        )
    return Found(state="failed", text=f"{target} has version {figure.version}, which is not what was approved.")


KIND = Kind(
    name="config",
    reads="get_config",
    params=SetConfig,
    takes="target: the key, such as spawn.night.rate or flags.night_market; params: value (any JSON), schema (optional)",
    plan=_plan,
    read_back=_read_back,
)
