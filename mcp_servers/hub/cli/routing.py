"""The command `route`: which tier a request would go to, why, and who would be asked."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import orjson
from pydantic import ValidationError

from body_broker.errors import BadInput
from body_broker.text import clean
from mcp_servers.hub.cli.context import data_dir_option, run, settings_of
from mcp_servers.hub.generating import Generate
from mcp_servers.hub.inferring import given_by
from mcp_servers.hub.rooms import ROOMS
from tiers.accepting import prepared
from tiers.catalogue import Catalogue, EngineSpec
from tiers.cloud.worth import by_worth
from tiers.counts import Counts
from tiers.engine import Engine
from tiers.faults import IN_WORDS
from tiers.model import InferenceRequest, Tier
from tiers.reading import read_catalogue
from tiers.requests import check
from tiers.router import Decision, ModelRouter, budget_s
from tiers.silver.personas import persona_named

_PROBLEMS_MAX = 20
_AGES_S = 24 * 3_600.0
_LATER = "answers_later"
_AFTERWARDS = {
    Tier.GOLD: "the NPC's last intent, then a fixed rule",
    Tier.SILVER: "an earlier answer to the same, then a fixed text",
    Tier.BRONZE: "the job waits, and asks all of them again; after five runs that failed it has failed",
    Tier.CLOUD: "an earlier answer to the same, then a fixed text",
}


_REFUSED = "the request is refused: no engine that could do its job is configured (docs/bronze.md)"


@click.command()
@click.argument("request", metavar="JSON")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@data_dir_option
def route(request: str, *, as_json: bool, data_dir: Path | None) -> None:
    """Say which tier a request goes to, why, who is asked in order, and who is not.

    JSON is the arguments of the tool generate, such as '{"sla": "real-time", "max_tokens": 8, "prompt": "the door opens"}', or - to read it from stdin. Nothing
    is asked: it is decided by what is configured. A running hub knows, besides, what is down, slow or has spent its money.
    """
    asked = _asked(sys.stdin.buffer.read() if request == "-" else request)
    catalogue = read_catalogue(given_by(settings_of(data_dir)))
    run(_check(asked))
    there = [spec for spec in catalogue.engines.values() if spec.url is not None and spec.dialect != "sagemaker"]
    router = ModelRouter(catalogue, {spec.name: Engine(spec, Counts()) for spec in there}, {})
    left_s = _AGES_S if router.tier_of(asked) is Tier.BRONZE else budget_s(asked)
    decision = router.decide(asked, remaining_s=left_s)
    about = replace(asked, requires_expert_reasoning=True) if decision.tier is Tier.BRONZE else asked
    decision = replace(decision, candidates=by_worth(decision.candidates, about, remaining_s=left_s))
    strange = _strange(router.with_role(asked), catalogue)
    click.echo(
        _as_json(decision, asked, catalogue, strange) if as_json else _as_text(decision, asked, catalogue, strange)
    )
    router.check_fits(asked, decision)


def _asked(text: str | bytes) -> InferenceRequest:
    """The request as the tool `generate` reads it.

    Raises:
        BadInput: It is no JSON object, or a field is unknown or does not fit; each is named.
    """
    try:
        return Generate.model_validate(orjson.loads(text)).request()
    except orjson.JSONDecodeError as error:
        raise BadInput(
            f"The request is not JSON: line {error.lineno}, column {error.colno}.",
            next_step="""Such as: '{"sla": "interactive", "prompt": "hello", "max_tokens": 100}'.""",
        ) from error
    except ValidationError as error:
        problems = [_problem(found) for found in error.errors(include_url=False, include_input=False)][:_PROBLEMS_MAX]
        raise BadInput(
            f"The request does not fit: {'; '.join(problems)}.",
            next_step=f"Its fields are {', '.join(Generate.model_fields)}.",
            details={"problems": problems},
        ) from error


async def _check(asked: InferenceRequest) -> None:
    """Refuse what every tier refuses, in its words.

    Raises:
        BadInput: A number cannot be, there is no such persona, or a schema is none.
        TooLarge: A schema is too long.
    """
    check(asked)
    if asked.persona is not None:
        await persona_named(asked.persona)
    await prepared(asked)


def _strange(asked: InferenceRequest, catalogue: Catalogue) -> list[str]:
    """Names among its tools that are neither a tool's nor a group's; no model is offered anything for them."""
    known = {tool.name for room in ROOMS for tool in room.tools} | catalogue.tool_groups.keys()
    return [clean(name, limit=100) for name in asked.tools or () if name not in known]


def _problem(found: Any) -> str:  # pydantic's ErrorDetails
    place = ".".join(clean(str(part), limit=40) for part in found["loc"]) or "request"
    if found["type"] == "model_type":
        return f"{place}: must be a JSON object"
    said = str(found["msg"]).removeprefix("Value error, ")
    return f"{place}: {'unknown' if found['type'] == 'extra_forbidden' else said}"


def _as_text(decision: Decision, asked: InferenceRequest, catalogue: Catalogue, strange: list[str]) -> str:
    is_job = decision.tier is Tier.BRONZE
    how = "a job, which is answered with its id" if is_job else f"{budget_s(asked):g} s for the whole answer"
    lines = [f"{decision.tier}: {decision.reason}; {how}"]
    candidates = _candidates(decision, catalogue)
    for place, (spec, needs_s) in enumerate(candidates, 1):
        cost = "" if spec.price is None else f", {spec.price.completion} USD for a million tokens written"
        wait = f", while {needs_s:g} s are left" if needs_s else ""
        lines.append(
            f"  {place}. {spec.name} ({spec.tier}, {spec.dialect}, {spec.model or 'the model it serves'}{cost}{wait})"
        )
    afterwards = _AFTERWARDS[decision.tier] if candidates or not is_job else _REFUSED
    lines.append(f"  {'then' if candidates else 'at once'}: {afterwards}")
    skipped = [skip for skip in decision.skipped if skip.reason != _LATER]
    lines += [f"  not {skip.engine}: {IN_WORDS.get(skip.reason, skip.reason)}" for skip in skipped]
    if strange:
        lines.append(f"  not offered: {', '.join(strange)}: there is no tool or group of that name")
    if all(spec.url is None for spec in catalogue.engines.values()):
        lines.append("No engine is configured: BODY_BROKER_SILVER_URL, or an API key, is where most begin.")
    return "\n".join(lines)


def _candidates(decision: Decision, catalogue: Catalogue) -> list[tuple[EngineSpec, float]]:
    """Who is asked in order, and how much time must be left; endpoints that answer later among them, which only jobs ask."""
    asked = [(each.engine.spec, each.needs_s) for each in decision.candidates]
    later = [(catalogue.engines[skip.engine], 0.0) for skip in decision.skipped if skip.reason == _LATER]
    places = {step.name: place for place, step in enumerate(decision.chain)}
    return [*sorted(later, key=lambda each: places[each[0].name]), *asked]


def _as_json(decision: Decision, asked: InferenceRequest, catalogue: Catalogue, strange: list[str]) -> str:
    candidates = _candidates(decision, catalogue)
    is_job = decision.tier is Tier.BRONZE
    body = {
        "tier": decision.tier,
        "reason": decision.reason,
        "budget_s": budget_s(asked),
        "candidates": [{"engine": spec.name, "tier": spec.tier, "needs_s": needs_s} for spec, needs_s in candidates],
        "skipped": [{"engine": s.engine, "reason": s.reason} for s in decision.skipped if s.reason != _LATER],
        "not_offered": strange,
        "then": _AFTERWARDS[decision.tier] if candidates or not is_job else _REFUSED,
    }
    return orjson.dumps(body, option=orjson.OPT_INDENT_2).decode()
