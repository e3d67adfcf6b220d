"""Seeded mutations of two worlds: texts that break one rule each, and look-alikes that break none. `python -m` prints the table.

.venv/bin/python -m tests.mcp_servers.storyteller.mutations [--verbose] [--part 1..5]
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson

import body_broker.world
from body_broker.world.canon.model import Canon, Fact, NodeTerm, PlotGraph, PlotNode, Predicate, Requires, StoredGraph
from body_broker.world.canon.predicates import STANDARD
from body_broker.world.kinds import name_of
from body_broker.world.model import Entity
from mcp_servers.storyteller.consistency.checking import check
from mcp_servers.storyteller.consistency.claims import Violation
from mcp_servers.storyteller.consistency.knowledge import Knowledge, build
from tests.mcp_servers.storyteller.forms import AROUND, MUTATIONS
from tests.mcp_servers.storyteller.lookalikes import LOOKALIKES

RULES = tuple(MUTATIONS)
_UNKNOWN_PEOPLE = ("Brask", "Edda Kormic", "Ingram", "Juno Wray", "Thessaly Boone", "Ruddock")
_UNKNOWN_PLACES = ("Gallowmere", "the Tin Chapel", "Oxney Cross", "the Lazaret", "Norwell")
_COLOURS = ("green", "blue", "brown", "grey", "hazel", "black", "amber")
_STARTER = Path(body_broker.world.__file__).parent / "starter"
_TENS = {20: "twenty", 30: "thirty", 40: "forty", 50: "fifty", 60: "sixty", 70: "seventy", 80: "eighty"}
_ONES = ("", "-one", "-two", "-three", "-four", "-five", "-six", "-seven", "-eight", "-nine")


@dataclass(frozen=True, slots=True)
class Stage:
    """A world as the generator needs it: what is known, and whom and what sentences can be made of."""

    name: str
    knowledge: Knowledge
    living: Sequence[str]
    dead: Sequence[str]
    places: Sequence[tuple[str, str]]
    facts: Mapping[str, Mapping[str, object]] = field(default_factory=dict[str, Mapping[str, object]])
    quests: Sequence[tuple[str, str]] = ()

    def label(self, key: str) -> str:
        return self.knowledge.label(key)


@dataclass(frozen=True, slots=True)
class Case:
    """A text, the rule that it breaks or None, and where in it the sentence stands."""

    rule: str
    breaks: bool
    text: str
    start: int
    end: int

    def found_in(self, violations: Sequence[Violation]) -> bool:
        return any(v.code == self.rule and v.start < self.end and v.end > self.start for v in violations)


def in_words(number: int) -> str:
    return _TENS[number // 10 * 10] + _ONES[number % 10]


def starter() -> Stage:
    """The starter world, from its files."""
    parts = {
        name: orjson.loads((_STARTER / f"{name}.json").read_bytes())
        for name in ("places", "people", "things", "facts", "plots")
    }
    entities: list[Entity] = []
    for part in ("places", "people", "things"):
        for section, items in parts[part]["entities"].items():
            for item in items:
                data = {name: value for name, value in item.items() if name not in {"id", "region"}}
                entities.append(
                    Entity(
                        id=item["id"],
                        kind=section.removesuffix("s") if section != "factions" else "faction",
                        region=item.get("region"),
                        version=1,
                        tick=0,
                        data=data,
                    )
                )
    canon = Canon(
        predicates=tuple(Predicate.model_validate(each) for each in parts["facts"]["predicates"]),
        facts=tuple(Fact.model_validate(each) for each in parts["facts"]["facts"]),
        plots=tuple(StoredGraph(version=1, **dict(PlotGraph.model_validate(each))) for each in parts["plots"]["plots"]),
    )
    return _stage("starter world", canon, entities)


def made(seed: int) -> Stage:
    """A small world with names of its own."""
    rng = random.Random(seed)  # noqa: S311 - seeded, so that a case can be made again
    first = rng.sample(
        ["Alder", "Betony", "Cosmo", "Dilys", "Ewart", "Fenella", "Gideon", "Hester", "Ivo", "Jessamy"], 10
    )
    last = rng.sample(
        ["Thorne", "Quarles", "Penrose", "Mallory", "Sark", "Lovelace", "Trask", "Underhill", "Vance", "Wyndham"], 10
    )
    people = [f"{a} {b}" for a, b in zip(first, last, strict=True)]
    ids = [person.lower().replace(" ", "_") for person in people]
    where = ["Coldharbour Mill", "the Glass Orangery", "Widow's Reach", "the Old Customs House", "Tanner's Row"]
    places = [name.lower().replace("the ", "").replace("'", "").replace(" ", "_") for name in where]
    entities = [
        _entity("hollow_shore", "region", "Hollow Shore", None),
        _entity("upper_fen", "region", "Upper Fen", None),
    ]
    entities += [
        _entity(p, "place", n, ("hollow_shore", "upper_fen")[i % 2])
        for i, (p, n) in enumerate(zip(places, where, strict=True))
    ]
    entities += [_entity(key, "npc", name, "hollow_shore") for key, name in zip(ids, people, strict=True)]
    facts: list[Fact] = []
    for n, key in enumerate(ids):
        said = {"age": rng.randrange(22, 79), "eye_colour": rng.choice(_COLOURS), "home": places[n % len(places)]}
        facts += [Fact(subject=key, predicate=name, object=value, source=f"lore:{key}") for name, value in said.items()]
    facts += [
        Fact(subject=key, predicate="status", object="dead", valid_from=5.0, source=f"lore:{key}") for key in ids[:3]
    ]
    titles = ["The Salt Audit", "A Debt of Candles", "The Drowned Clock", "Seven Empty Chairs"]
    nodes = [
        PlotNode(
            id=f"q{n}",
            kind="quest",
            title=title,
            requires=Requires(all=(NodeTerm(node=f"q{n - 1}"),)) if n else Requires(),
        )
        for n, title in enumerate(titles)
    ]
    canon = Canon(
        predicates=tuple(STANDARD.values()),
        facts=tuple(facts),
        plots=(StoredGraph(id="g", title="G", version=1, nodes=tuple(nodes)),),
    )
    return _stage(f"made world {seed}", canon, entities)


def _entity(key: str, kind: str, name: str, region: str | None) -> Entity:
    return Entity(id=key, kind=kind, region=region, version=1, tick=0, data={"name": name})  # type: ignore[arg-type]


def _stage(name: str, canon: Canon, entities: Sequence[Entity]) -> Stage:
    known = build(canon, entities, None)
    dead = {fact.subject for fact in canon.facts if fact.predicate == "status" and fact.object == "dead"}
    dead |= {e.id for e in entities if e.data.get("alive") is False}
    npcs = [
        e.id
        for e in entities
        if e.kind == "npc" and len(name_of(e).split()) > 1 and e.id not in dead and " " not in e.id
    ]
    facts: dict[str, dict[str, object]] = {}
    for fact in canon.facts:
        facts.setdefault(fact.subject, {})[fact.predicate] = fact.object
    places = [e.id for e in entities if e.kind == "place" and name_of(e)[0].isupper()]
    pairs = [(a, b) for a in places for b in places if known.apart(a, b) and known.inside.get(a)]
    quests = [
        (term.node, node.id)
        for graph in canon.plots
        for node in graph.nodes
        for term in node.requires.all
        if isinstance(term, NodeTerm)
    ]
    full = [
        n
        for n in npcs
        if {"age", "eye_colour", "home"} <= set(facts.get(n, {})) and int(str(facts[n]["age"])) in range(20, 90)
    ]
    return Stage(name, known, full, sorted(dead), pairs, facts, quests)


def cases(stage: Stage, rule: str, part: int, seed: int) -> Iterator[Case]:
    """Ten texts that break a rule, and ten that do not."""
    rng = random.Random(f"{seed} {stage.name} {rule} {part}")  # noqa: S311 - the same
    for breaks, forms in ((True, MUTATIONS[rule][part]), (False, LOOKALIKES[rule][part])):
        for form in forms:
            yield _case(stage, rule, form, rng, breaks=breaks)


def _case(stage: Stage, rule: str, form: str, rng: random.Random, *, breaks: bool) -> Case:
    alive, other = rng.sample(list(stage.living), 2)
    facts = stage.facts[alive]
    x, y = rng.choice(stage.places)
    prior, later = rng.choice(stage.quests)
    age = int(str(facts["age"]))
    wrong = rng.choice([n for n in range(21, 89) if n != age and n % 10])
    colour = rng.choice([c for c in _COLOURS if c != facts["eye_colour"]])
    home = rng.choice([b for _, b in stage.places if stage.knowledge.apart(str(facts["home"]), b)])
    full = stage.label(alive)
    said = {
        "l": full, "f": _first_name(stage, full), "m": stage.label(other), "d": stage.label(rng.choice(list(stage.dead))),
        "u": rng.choice(_UNKNOWN_PEOPLE), "v": rng.choice(_UNKNOWN_PLACES), "x": _low(stage.label(x)), "y": _low(stage.label(y)),
        "r": _low(stage.label(min(stage.knowledge.inside[x]))), "a": age, "A": wrong, "n": in_words(age), "N": in_words(wrong),
        "c": facts["eye_colour"], "C": colour, "h": _low(stage.label(str(facts["home"]))), "H": _low(stage.label(home)),
        "p": stage.label(prior), "q": stage.label(later),
    }  # fmt: skip
    sentence = form.format_map(said)
    sentence = sentence[0].upper() + sentence[1:]
    before, after = rng.sample(AROUND, 2)
    head = before.format_map(said) + " "
    return Case(rule, breaks, f"{head}{sentence} {after.format_map(said)}", len(head), len(head) + len(sentence))


def _first_name(stage: Stage, full: str) -> str:
    return next(word for word in full.split() if stage.knowledge.names.find(word))


def _low(label: str) -> str:
    return label[0].lower() + label[1:] if label.startswith("The ") else label


@dataclass(slots=True)
class Score:
    """What became of the cases of one rule."""

    mutations: int = 0
    found: int = 0
    lookalikes: int = 0
    alarms: int = 0
    sentences: int = 0
    understood: int = 0
    wrong: list[Case] = field(default_factory=list[Case])

    def add(self, case: Case, known: Knowledge) -> None:
        done = check(case.text, known)
        self.sentences += done.sentences
        self.understood += done.understood
        right = case.found_in(done.violations) if case.breaks else not done.violations
        self.mutations += case.breaks
        self.found += case.breaks and right
        self.lookalikes += not case.breaks
        self.alarms += not case.breaks and not right
        if not right:
            self.wrong.append(case)


def score(stages: Sequence[Stage], part: int, seeds: Sequence[int]) -> dict[str, Score]:
    """Each rule over every world and seed."""
    scores = {rule: Score() for rule in RULES}
    for rule, total in scores.items():
        for stage in stages:
            for seed in seeds:
                for case in cases(stage, rule, part, seed):
                    total.add(case, stage.knowledge)
    return scores


def worlds() -> list[Stage]:
    """The starter world and two that are made."""
    return [starter(), made(1), made(2)]


def _print(part: int, *, verbose: bool) -> None:
    scores = score(worlds(), part, range(5))
    print(f"part {part + 1}: rule, mutations found, false alarms, coverage")
    for rule, s in scores.items():
        print(
            f"  {rule:20} {s.found:4}/{s.mutations:<4} {s.alarms:4}/{s.lookalikes:<4} {s.understood / s.sentences:.0%}"
        )
        if verbose:
            for case in s.wrong:
                print("     ", "missed" if case.breaks else "ALARM ", case.text[case.start : case.end])


def _print_prose(path: Path) -> None:
    """A text that knows nothing of the starter world, in pieces of at most 20,000 characters."""
    known, sentences, understood, verdicts, codes = starter().knowledge, 0, 0, Counter[str](), Counter[str]()
    for part in path.read_text(encoding="utf-8").split("\n\n\n"):
        for at in range(0, len(part), 20_000):
            done = check(part[at : at + 20_000], known)
            sentences, understood = sentences + done.sentences, understood + done.understood
            verdicts[str(done.consistent)] += 1
            codes.update(violation.code for violation in done.violations)
    print(f"{path.name}: {sentences} sentences, {understood} understood, consistent {dict(verdicts)}, {dict(codes)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--part", type=int, choices=range(1, 6), action="append")
    parser.add_argument("--prose", type=Path, nargs="+", default=[])
    given = parser.parse_args()
    for path in given.prose:
        _print_prose(path)
    for each in given.part or (() if given.prose else range(1, 6)):
        _print(each - 1, verbose=given.verbose)
