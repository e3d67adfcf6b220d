"""The storyteller server: lore, facts, plots and consistency with canon. Owns the tools' wording; the work is in services and canon."""

from __future__ import annotations

from typing import cast

from pydantic import ValidationError

from body_broker.calls import Call, Caller, Room, Tool
from body_broker.errors import BadInput, Conflict
from body_broker.lore.index import Filter
from body_broker.lore.model import Citation
from body_broker.work import keyed
from body_broker.work.model import Origin
from body_broker.world.canon import store
from body_broker.world.canon.model import Fact
from body_broker.world.kinds import name_of
from mcp_servers.storyteller import arcs, writing
from mcp_servers.storyteller.drafts import Draft, GenerateNarrative, GenerateStoryArc, GetStoryArc, StoryArc
from mcp_servers.storyteller.foreseeing import foresee_add, foresee_retire
from mcp_servers.storyteller.models import (
    AddFact,
    CheckConsistency,
    Consistency,
    EntityFacts,
    FactAdded,
    FactRetired,
    FactTold,
    GetEntityFacts,
    Lore,
    RetireFact,
    RetrieveLore,
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
from mcp_servers.storyteller.verdicts import consistency_of

_BRONZE = "BODY_BROKER_BRONZE_URL"
_FACTS_TOLD = 20
_TOKENS = 4_000
_WORDS_MAX = 2_000


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


async def generate_narrative(arguments: GenerateNarrative, call: Call, services: Services) -> Draft:
    """The job of a text by an expert (seed 001, storyteller)."""
    assignment = writing.narrative_of(arguments, outside=call.tainted)
    return Draft(job_id=await services.jobs.submit(assignment, Origin.of(call), key=call.key))


async def generate_story_arc(arguments: GenerateStoryArc, call: Call, services: Services) -> Draft:
    """The job of a story in parts by an expert (seed 001, bronze)."""
    assignment = writing.arc_of(arguments, outside=call.tainted)
    return Draft(job_id=await services.jobs.submit(assignment, Origin.of(call), key=call.key))


async def get_story_arc(arguments: GetStoryArc, call: Call, services: Services) -> StoryArc:
    """What of a story is written, also while it is being written (seed 001, bronze)."""
    found = await arcs.read(arguments.job_id, call.caller.asker, pool=services.pool, kept=services.kept)
    return found.since(arguments.start)


async def has_budget(
    _arguments: GenerateNarrative | GenerateStoryArc, caller: Caller, services: Services
) -> frozenset[str]:
    """`within_budget` where an expert may still be asked on the caller's account."""
    return await services.budget(caller)


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
            establishes=has_budget,
            title="Generate narrative",
            description=(
                "Have an expert model write a text that agrees with canon. Answers with a job: get_job has the text, and what"
                " contradicts canon in it. For a line or two use generate."
            ),
            effect="repeatable",  # the job is begun once under a key
            needs=_BRONZE,
            open_world=True,
            work=writing.NARRATIVE,
        ),
        Tool(
            name="generate_story_arc",
            group="draft",
            modifiers=frozenset({"spend", "long_running"}),
            run=generate_story_arc,
            establishes=has_budget,
            title="Generate a story arc",
            description=(
                "Have an expert model write a story in parts. Answers with a job: get_story_arc has the parts as they come,"
                " get_job what contradicts canon in them."
            ),
            effect="repeatable",
            needs=_BRONZE,
            open_world=True,
            work=writing.STORY_ARC,
        ),
        Tool(
            name="get_story_arc",
            group="own",
            run=get_story_arc,
            title="Get a story arc",
            description="The parts of a story arc of yours that are written so far, all or from one part on.",
            output="as_marked",
            needs=_BRONZE,
        ),
    ),
    prompts=PROMPTS,
)
