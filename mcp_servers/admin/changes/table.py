"""Owns which kinds of change there are, and reading a request for one: its params are held to the kind's own model."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from body_broker.calls import Json
from body_broker.errors import BadInput, NotConfigured
from body_broker.text import clean, quoted
from mcp_servers.admin.changes import config, delete_lore, engine, ingest, world_patch
from mcp_servers.admin.changes.kind import Kind, Params

KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        config.KIND,
        ingest.KIND,
        world_patch.KIND,
        world_patch.REMOVAL,
        delete_lore.KIND,
        engine.PAUSE,
        engine.RESUME,
    )
}
WITHOUT_BACKEND = frozenset({"deploy", "redeploy"})
"""Kinds that the policies know, and nothing here does."""
PAGE = "docs/changes.md"


def kind_named(name: str) -> Kind:
    """The kind of a request.

    Raises:
        NotConfigured: It has no backend.
        BadInput: There is none of that name.
    """
    if name in WITHOUT_BACKEND:
        raise NotConfigured(
            f"This version deploys nothing: a change of kind {name} has no backend, and no setting brings one.",
            next_step="Nobody was asked. Deploy by the way your studio has for it.",
            details={"kind": name},
        )
    if name not in KINDS:
        raise BadInput(
            f"There is no change of kind {quoted(name, limit=40)}.",
            next_step=f"Kinds are: {', '.join(KINDS)}. {PAGE} has their params.",
            details={"problems": ["change_request.kind: unknown"]},
        )
    return KINDS[name]


def params_of(kind: Kind, given: Mapping[str, Json]) -> Params:
    """The params of a request.

    Raises:
        BadInput: One is unknown, missing, or does not fit; each place is named.
    """
    try:
        return kind.params.model_validate(dict(given))
    except ValidationError as error:
        problems = [
            f"{'.'.join(['params', *(clean(str(part), limit=40) for part in found['loc'])])}: {found['msg']}"
            for found in error.errors(include_url=False, include_input=False, include_context=False)
        ]
        raise BadInput(
            f"The params do not fit a change of kind {kind.name}: {'; '.join(problems[:5])}.",
            next_step=f"It takes {kind.takes}. {PAGE} has an example.",
            details={"problems": problems[:20]},
        ) from error
