"""Owns the shapes of the storyteller's tools: what each takes and answers, and how an answer reads as text. Not of those that write."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from body_broker.calls import Arguments, Json, Result
from body_broker.lore.model import Citation, Missing
from body_broker.world.canon.model import EdgeKind, NodeKind, Scalar
from body_broker.world.canon.plots import LockKind
from mcp_servers.storyteller.consistency.claims import Code, Reason

NARRATIVE_CHARACTERS_MAX = 100_000
Name = Annotated[str, Field(min_length=1, max_length=120)]
Id = Annotated[str, Field(min_length=1, max_length=80)]
Moment = Annotated[float | None, Field(description="Story time, else the present.")]
Verdict = Literal["pass", "fail", "unsure"]
Cursor = Annotated[str | None, Field(max_length=1_024, description="A next_cursor.")]
Limit = Annotated[int, Field(ge=1, le=100)]


class _Told(BaseModel):
    """What agents are told: closed and frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FactTold(_Told):
    """A fact of canon."""

    id: str
    subject: str
    predicate: str
    object: Scalar
    valid_from: float | None = None
    valid_to: float | None = None
    source: str

    def line(self) -> str:
        """One line."""
        times = "" if self.valid_from is None and self.valid_to is None else f" ({self.valid_from}..{self.valid_to})"
        return f"{self.subject}: {self.predicate} = {self.object}{times} [{self.id}, {self.source}]"


class RetrieveLore(Arguments):
    """A topic, and what it is for."""

    topic: Annotated[str, Field(min_length=1, max_length=2_000)]
    context: Annotated[
        dict[Annotated[str, Field(max_length=64)], Json],
        Field(
            max_length=16,
            description="npc, region: ids or names; persona: whose lore; others: words to look for.",
        ),
    ] = Field(default={})
    k: Annotated[int, Field(ge=1, le=20)] = 5
    spoiler_max: Annotated[int | None, Field(ge=0, le=100)] = None
    known_to: Annotated[str | None, Field(max_length=80, description="Only what this one knows.")] = None
    entities: Annotated[list[Name], Field(max_length=16, description="Whose facts to add.")] = Field(default=[])
    as_of: Moment = None


class Lore(Result):
    """Passages, each with the citation of the same number, and facts."""

    passages: list[str]
    citations: list[Citation]
    facts: list[FactTold] = Field(default_factory=list[FactTold])
    unavailable: list[Missing] = Field(default_factory=list[Missing])
    reason: str | None = None

    def outside(self) -> bool:
        """Whether a passage is not canon."""
        return any(citation.source == "outside" for citation in self.citations)

    def text(self) -> str:
        """Each passage under its citation, then the facts."""
        pairs = zip(self.citations, self.passages, strict=True)
        parts = [f"[{n}] {citation.label()}\n{content}" for n, (citation, content) in enumerate(pairs, 1)]
        reason = [self.reason] if self.reason else []
        return "\n\n".join([*parts, *(fact.line() for fact in self.facts), *reason]) or "Nothing is known of that."


class Scope(BaseModel):
    """When the text plays, and what has happened."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    at: Annotated[float | None, Field(description="Story time.")] = None
    player_id: Annotated[str | None, Field(max_length=80, description="Whose quests and flags count.")] = None
    done: Annotated[list[Id], Field(max_length=200, description="Quests done; no other is.")] | None = None


class CheckConsistency(Arguments):
    """A text, and what to hold it against beside canon."""

    narrative: Annotated[str, Field(min_length=1, max_length=NARRATIVE_CHARACTERS_MAX)]
    existing_lore: Annotated[
        dict[Annotated[str, Field(min_length=1, max_length=120)], Json],
        Field(
            max_length=200,
            description="By name: a text, or values such as {age: 34}. Canon for this call.",
        ),
    ] = Field(default={})
    scope: Scope | None = None
    level: Literal["rules"] = "rules"


class Contradicted(_Told):
    """What a claim contradicts."""

    source: str
    text: str


class Found(_Told):
    """A contradiction; claim is narrative[start:end]."""

    code: Code
    severity: Literal["error", "warning"]
    claim: str
    span: Annotated[list[int], Field(min_length=2, max_length=2)]
    conflicts_with: Contradicted


class NotUnderstood(_Told):
    """A sentence that was not wholly understood."""

    span: list[int]
    reason: Reason


class Coverage(_Told):
    """How much of the text was understood; the first sentences that were not; how much of existing_lore no rule could use."""

    sentences: int
    understood: int
    lore_not_understood: int
    reasons: dict[Reason, int]
    not_understood: list[NotUnderstood]


class Consistency(Result):
    """true only where every sentence and all lore was understood and nothing contradicts; null where that is not known."""

    consistent: bool | None
    verdict: Verdict
    violations: list[Found]
    omitted: int = Field(default=0, description="Violations beyond those listed.")
    coverage: Coverage

    def text(self) -> str:
        """The verdict, then a line for each violation."""
        seen = f"{self.coverage.understood} of {self.coverage.sentences} sentences understood"
        if self.coverage.lore_not_understood:
            seen += f", {self.coverage.lore_not_understood} of existing_lore not"
        head = {"pass": "Consistent", "fail": "Not consistent", "unsure": "Unsure: no rule found a contradiction"}
        lines = [
            f"{v.code} at {v.span[0]}-{v.span[1]}: “{v.claim}” against “{v.conflicts_with.text}” ({v.conflicts_with.source})"
            for v in self.violations
        ]
        return "\n".join([f"{head[self.verdict]} ({seen}).", *lines])


class GetEntityFacts(Arguments):
    """Somebody or something."""

    entity: Annotated[str, Field(min_length=1, max_length=120, description="An id or a name.")]
    as_of: Moment = None
    known_to: Annotated[str | None, Field(max_length=80, description="Only what this one knows.")] = None
    limit: Limit = 50
    cursor: Cursor = None


class EntityFacts(Result):
    """What canon says of it."""

    entity: str
    name: str
    items: list[FactTold]
    next_cursor: str | None = None

    def text(self) -> str:
        """One line each."""
        return "\n".join(fact.line() for fact in self.items) or f"Canon has no such fact of {self.name}."


class QuestId(Arguments):
    """One quest, stage, beat or ending."""

    id: Id
    spoiler_max: Annotated[int | None, Field(ge=0, le=100)] = None


class NodeTold(_Told):
    """A node of a plot; requires and effects as world files have them."""

    id: str
    kind: NodeKind
    title: str
    summary: str
    requires: dict[str, Any]
    effects: list[dict[str, Any]]
    exclusive_group: str | None = None
    story_time: float | None = None
    spoiler_level: int = 0


class QuestTold(Result):
    """A node, what leads to it and from it, and how far the world has it."""

    graph_id: str
    node: NodeTold
    after: list[str]
    before: list[str]
    state: str | None = Field(default=None, description="Of the world's quest; null where the world keeps none.")
    stage: str | None = None


class GetPlotGraph(Arguments):
    """A graph, or the part of it that follows a node."""

    graph_id: Id
    start: Annotated[str | None, Field(max_length=80, description="Only what follows this node.")] = None
    depth: Annotated[int | None, Field(ge=0, le=100, description="Steps from start.")] = None
    spoiler_max: Annotated[int | None, Field(ge=0, le=100)] = None
    limit: Limit = 50
    cursor: Cursor = None


class NodeSummary(_Told):
    """A node in a listing: get_quest has the rest."""

    id: str
    kind: NodeKind
    title: str


class EdgeTold(_Told):
    """What may follow what."""

    src: str
    dst: str
    kind: EdgeKind
    label: str = ""


class PlotGraphTold(Result):
    """Nodes of a graph and the edges from them."""

    graph_id: str
    title: str
    version: int
    nodes: list[NodeSummary]
    edges: list[EdgeTold]
    next_cursor: str | None = None


class ForPlayer(Arguments):
    """A player."""

    player_id: Id
    limit: Limit = 50


class AvailableQuests(Result):
    """Quests that this player could take on now."""

    items: list[NodeSummary]
    omitted: int = 0


class ExplainLocked(Arguments):
    """A node and a player."""

    node_id: Id
    player_id: Id


class Lock(_Told):
    """One requirement that is not met."""

    kind: LockKind | Literal["done", "exclusive"]
    what: str


class Locked(Result):
    """Why a player cannot have it; nothing is in the way where locks is empty."""

    node_id: str
    locked: bool
    locks: list[Lock]


class ValidatePlotGraph(Arguments):
    """A graph."""

    graph_id: Id


class FaultTold(_Told):
    """What is wrong with a graph, and at which node."""

    code: str
    severity: Literal["error", "warning"]
    node: str
    text: str


class Validated(Result):
    """valid is false with any error; warnings may be meant."""

    graph_id: str
    version: int
    valid: bool
    faults: list[FaultTold]
    omitted: int = 0


class AddFact(Arguments):
    """A new fact of canon."""

    subject: Annotated[str, Field(min_length=1, max_length=120, description="An entity's id, or a name.")]
    predicate: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
    object: Scalar
    valid_from: float | None = None
    valid_to: float | None = None
    known_by: Annotated[list[Id] | None, Field(max_length=32)] = None
    source: Annotated[str | None, Field(max_length=200)] = None


class FactAdded(Result):
    """The fact's id; created is false where canon had it."""

    fact_id: str
    created: bool


class RetireFact(Arguments):
    """A fact that is to hold no longer."""

    fact_id: Id


class FactRetired(Result):
    """retired is false where it had been before."""

    fact_id: str
    retired: bool
