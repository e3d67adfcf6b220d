"""The resource hub://models: tiers, engines, roles and groups of tools as this hub has them; no address, no key."""

from __future__ import annotations

import orjson

from body_broker.calls import Arguments, Call, Json, Resource, ResourceText
from mcp_servers.hub.generating import HasInferring
from tiers.catalogue import EngineSpec


class NoArguments(Arguments):
    """No arguments."""


async def read_models(_arguments: NoArguments, _call: Call, services: HasInferring) -> ResourceText:
    """Tiers, engines and roles, as models.toml and the settings have them; no address, no key."""
    inferring = services.inferring
    catalogue = inferring.catalogue
    body: dict[str, Json] = {
        "models": catalogue.answering(),
        "engines": [_engine(spec, inferring.context_tokens(spec)) for spec in catalogue.engines.values()],
        "then": {tier.value: later for tier, later in catalogue.then.items()},
        "roles": {r.name: {"tier": r.tier, "models": r.models, "tools": r.tools} for r in catalogue.roles.values()},
        "tool_groups": catalogue.tool_groups,
    }
    return ResourceText(content=orjson.dumps(body, option=orjson.OPT_INDENT_2).decode(), from_outside=False)


def _engine(spec: EngineSpec, context_tokens: int | None) -> dict[str, Json]:
    price = spec.price and {
        "prompt": str(spec.price.prompt),
        "cached": str(spec.price.cached),
        "completion": str(spec.price.completion),
        "source": spec.price.source,
        "as_of": spec.price.as_of,
    }
    return {
        "name": spec.name,
        "tier": spec.tier,
        "configured": spec.url is not None,
        "model": spec.model,
        "size": spec.size,
        "quantisation": spec.quantisation,
        "dialect": spec.dialect,
        "context_tokens": context_tokens,
        "tools": spec.can_tools,
        "schema": spec.can_schema,
        "roles": sorted(spec.roles),
        "usd_per_million_tokens": price,
    }


RESOURCES = (
    Resource(
        name="hub_models",
        group="draft",
        run=read_models,
        title="Models",
        description="Which tiers and engines there are, what they can, what they cost, and whether they are configured.",
        uri="hub://models",
        mime_type="application/json",
    ),
)
