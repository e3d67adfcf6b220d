"""The storyteller server: lore, facts, plots and consistency with canon. Owns the tools' wording; the work is in services and canon."""

from __future__ import annotations

from typing import cast

from pydantic import ValidationError

from body_broker.calls import Call, Room, Tool
from body_broker.errors import BadInput, Conflict, NotConfigured
from body_broker.lore.index import Filter
from body_broker.lore.model import Citation
from body_broker.work import keyed
from body_broker.world.canon import store
from body_broker.world.canon.model import Fact
from body_broker.world.kinds import name_of
from mcp_servers.storyteller.consistency.checking import Checked
from mcp_servers.storyteller.foreseeing import foresee_add, foresee_retire
from mcp_servers.storyteller.models import (
    AddFact,
    CheckConsistency,
    Consistency,
    Contradicted,
    Coverage,
    EntityFacts,
    FactAdded,
    FactRetired,
    FactTold,
    Found,
    GenerateNarrative,
    GenerateStoryArc,
    GetEntityFacts,
    GetStoryArc,
    Job,
    Lore,
    NotUnderstood,
    RetireFact,
    RetrieveLore,
    StoryArc,
    Verdict,
)
from mcp_servers.storyteller.plotted import (
    explain_locked,
    get_plot_graph,
    get_quest,
    list_available_quests,
    validate_plot_graph,
)
from mcp_servers.storyteller.prompts import PROMPTS
from mcp_servers.storyteller.services import Services

_BRONZE = "BODY_BROKER_BRONZE"
_VIOLATIONS_TOLD = 50
_SENTENCES_TOLD = 20
_FACTS_TOLD = 20
_TOKENS = 4_000
_WORDS_MAX = 2_000
_VERDICTS: dict[bool | None, Verdict] = {True: "pass", False: "fail", None: "unsure"}


async def retrieve_lore(arguments: RetrieveLore, _call: Call, services: Services) -> Lore:
    """Passages about a topic as strings, with their citations and the facts of whom it is about (seed 001, storyteller)."""
    context = {name: _said(value) for name, value in arguments.context.items()}
    persona, npc = context.pop("persona", None), context.get("npc")
    entities = await services.entities()
    words = [entities[text].id and name_of(entities[text]) if text in entities else text for text in context.values()]
    found = await services.lore.retrieve_context(
        await services.lore.index_for(persona or None),
        " ".join([arguments.topic, *words])[:_WORDS_MAX],
        limit=arguments.k,
        token_budget=_TOKENS,
        where=Filter(spoiler_max=arguments.spoiler_max, known_to=arguments.known_to),
    )
    facts: list[Fact] = []
    about: list[str] = [
        *arguments.entities,
        *([npc] if npc and npc in entities and npc not in arguments.entities else []),
    ]
    for entity in about:
        there = (await services.subject(entity, arguments.known_to))[2]
        facts += await services.within([f for f in there if f.holds_at(arguments.as_of)], arguments.spoiler_max)
    return Lore(
        passages=[passage.content for passage in found.passages],
        citations=[Citation(**passage.model_dump(exclude={"content", "score"})) for passage in found.passages],
        facts=[_fact(fact) for fact in facts[:_FACTS_TOLD]],
        unavailable=found.unavailable,
        reason=found.reason,
    )


def _said(value: object) -> str:
    """A context's value as words; a list's as many, anything deeper as nothing."""
    if isinstance(value, list):
        return " ".join(_said(each) for each in cast("list[object]", value)[:16])
    return str(value) if isinstance(value, str | int | float) else ""


def _fact(fact: Fact) -> FactTold:
    return FactTold(id=fact.key, **fact.model_dump(exclude={"id", "known_by"}))


async def check_consistency(arguments: CheckConsistency, _call: Call, services: Services) -> Consistency:
    """Whether a text agrees with canon, by rules (seed 001, storyteller): true only where all of it was understood."""
    scope = arguments.scope
    checked = await services.check(
        arguments.narrative,
        arguments.existing_lore,
        at=scope and scope.at,
        player_id=scope and scope.player_id,
        done=scope and scope.done,
    )
    return consistency_of(checked)


def consistency_of(checked: Checked) -> Consistency:
    """A check as it is told: bounded lists, full counts."""
    return Consistency(
        consistent=checked.consistent,
        verdict=_VERDICTS[checked.consistent],
        violations=[
            Found(
                code=v.code,
                severity=v.severity,
                claim=v.claim,
                span=[v.start, v.end],
                conflicts_with=Contradicted(source=v.conflicts_with.source, text=v.conflicts_with.text),
            )
            for v in checked.violations[:_VIOLATIONS_TOLD]
        ],
        omitted=max(0, len(checked.violations) - _VIOLATIONS_TOLD),
        coverage=Coverage(
            sentences=checked.sentences,
            understood=checked.understood,
            lore_not_understood=checked.lore_not_understood,
            reasons=dict(checked.reasons),
            not_understood=[
                NotUnderstood(span=[read.start, read.end], reason=read.reason)
                for read in checked.not_understood[:_SENTENCES_TOLD]
                if read.reason is not None
            ],
        ),
    )


async def get_entity_facts(arguments: GetEntityFacts, call: Call, services: Services) -> EntityFacts:
    """What canon says of somebody or something at a moment."""
    key, name, facts = await services.subject(arguments.entity, arguments.known_to)
    known = sorted(
        (fact for fact in facts if fact.holds_at(arguments.as_of)), key=lambda fact: (fact.predicate, fact.key)
    )
    after = call.open_cursor(arguments.cursor)
    rest = known if after is None else [fact for fact in known if (fact.predicate, fact.key) > tuple(after)]
    page = rest[: arguments.limit]
    more = [page[-1].predicate, page[-1].key] if len(rest) > len(page) else None
    return EntityFacts(entity=key, name=name, items=[_fact(f) for f in page], next_cursor=call.seal_cursor(more))


async def add_fact(arguments: AddFact, call: Call, services: Services) -> FactAdded:
    """Take a fact into canon: what a person says yes to, never an agent by itself."""
    if (made := await keyed.recall(services.pool, call.key)) is not None:
        fact_id, created = made
        return FactAdded(fact_id=fact_id, created=created)
    requester = call.caller.requester
    said = arguments.model_dump(exclude={"source"}) | {"source": arguments.source or requester}
    said["subject"] = await services.key_of(arguments.subject)
    if call.approval is not None and said["subject"] != call.basis:
        raise Conflict(
            "The subject's name means another one by now than the one who was shown to those who approved it.",
            next_step="Give the id: find_entities lists them.",
        )
    try:
        fact = Fact.model_validate(said)
    except ValidationError as error:
        raise BadInput("valid_from must lie before valid_to, and every text within its bounds.") from error
    async with services.pool.acquire() as connection, connection.transaction():
        effect = store.Effect(requester, call.receipt)
        fact_id, created = await keyed.once(connection, call.key, lambda: store.add_fact(connection, fact, effect))
    return FactAdded(fact_id=fact_id, created=created)


async def retire_fact(arguments: RetireFact, call: Call, services: Services) -> FactRetired:
    """End a fact: canon no longer says it."""
    effect = store.Effect(call.caller.requester, call.receipt)
    async with services.pool.acquire() as connection, connection.transaction():
        retired = await keyed.once(
            connection, call.key, lambda: store.retire_fact(connection, arguments.fact_id, effect)
        )
    return FactRetired(fact_id=arguments.fact_id, retired=retired)


async def generate_narrative(_arguments: GenerateNarrative, _call: Call, _services: Services) -> Job:
    """A text by the bronze tier (seed 001, storyteller)."""
    raise _no_bronze()


async def generate_story_arc(_arguments: GenerateStoryArc, _call: Call, _services: Services) -> Job:
    """A story in parts by the bronze tier (seed 001, bronze)."""
    raise _no_bronze()


async def get_story_arc(_arguments: GetStoryArc, _call: Call, _services: Services) -> StoryArc:
    """What of a story is written (seed 001, bronze)."""
    raise _no_bronze()


def _no_bronze() -> NotConfigured:
    return NotConfigured(
        f"This version has no backend for this tool; one that has it is configured by {_BRONZE}.",
        details={"setting": _BRONZE},
    )


ROOM = Room(
    name="storyteller",
    title="Storyteller",
    description="Canon: lore, facts and plots, and whether a text agrees with them.",
    tools=(
        Tool(
            name="retrieve_lore",
            group="retrieval",
            run=retrieve_lore,
            title="Retrieve lore",
            description=(
                "Gather passages with citations, and facts, to write about a topic in its context. To find one answer, use"
                " search_lore."
            ),
            output="as_marked",  # each citation says whether its document is canon
        ),
        Tool(
            name="check_consistency",
            group="retrieval",
            run=check_consistency,
            title="Check consistency",
            description=(
                "Hold a text against canon by rules before it is used: dead who act, unknown names, two places at once, wrong"
                " facts, quests out of order. null is no yes. Not for style."
            ),
        ),
        Tool(
            name="get_entity_facts",
            group="retrieval",
            run=get_entity_facts,
            title="Get facts",
            description="Canon's facts of one person, place or thing. Not its live state: get_npc_state has that.",
            profile="all",
        ),
        Tool(
            name="get_quest",
            group="retrieval",
            run=get_quest,
            title="Get a quest",
            description="One quest, stage, beat or ending: what it needs, does, and leads to.",
            profile="all",
        ),
        Tool(
            name="get_plot_graph",
            group="retrieval",
            run=get_plot_graph,
            title="Get a plot graph",
            description="The nodes and edges of a plot, or those after one node. For one node, use get_quest.",
            profile="all",
        ),
        Tool(
            name="list_available_quests",
            group="retrieval",
            run=list_available_quests,
            title="List available quests",
            description="Which quests a player could take on now. Why another is not among them: explain_locked.",
            profile="all",
        ),
        Tool(
            name="explain_locked",
            group="retrieval",
            run=explain_locked,
            title="Explain a lock",
            description="What is in the way of a quest, stage, beat or ending for a player.",
            profile="all",
        ),
        Tool(
            name="validate_plot_graph",
            group="retrieval",
            run=validate_plot_graph,
            title="Validate a plot graph",
            description="What is wrong with a plot: dangling, cyclic, unreachable, dead ends. Use it after a world was loaded.",
            profile="all",
        ),
        Tool(
            name="add_fact",
            group="write",
            run=add_fact,
            foresees=foresee_add,
            title="Add a fact",
            description="Take a new fact into canon. To correct one, retire it first. Not for live state.",
            effect="repeatable",
            profile="all",
        ),
        Tool(
            name="retire_fact",
            group="write",
            run=retire_fact,
            foresees=foresee_retire,
            title="Retire a fact",
            description="End a fact of canon by its id. A fact that ends within the story gets valid_to instead.",
            effect="repeatable",
            profile="all",
        ),
        Tool(
            name="generate_narrative",
            group="draft",
            modifiers=frozenset({"spend", "long_running"}),
            run=generate_narrative,
            title="Generate narrative",
            description="Have the bronze tier write a text. Answers with a job. Check what it wrote with check_consistency.",
            effect="once",
            needs=_BRONZE,
        ),
        Tool(
            name="generate_story_arc",
            group="draft",
            modifiers=frozenset({"spend", "long_running"}),
            run=generate_story_arc,
            title="Generate a story arc",
            description="Have the bronze tier write a story in parts. Answers with a job for get_story_arc.",
            effect="once",
            needs=_BRONZE,
        ),
        Tool(
            name="get_story_arc",
            group="own",
            run=get_story_arc,
            title="Get a story arc",
            description="The parts of a story arc of yours that are written so far.",
            output="outside",
            needs=_BRONZE,
        ),
    ),
    prompts=PROMPTS,
)
