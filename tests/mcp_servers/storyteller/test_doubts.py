"""What may never be called consistent: the dead by a pronoun, lore that no rule can use, texts that contradict themselves."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from body_broker.world.canon.model import Canon, Fact, NodeTerm, PlotGraph, PlotNode, Predicate, Requires, StoredGraph
from body_broker.world.canon.predicates import STANDARD
from body_broker.world.model import Entity, Kind
from mcp_servers.storyteller.consistency.checking import Checked, check
from mcp_servers.storyteller.consistency.knowledge import Held, Knowledge, Progress, build
from mcp_servers.storyteller.consistency.lore import with_lore

PEOPLE = {
    "mara": "Mara Thorne",
    "ivo": "Ivo Sark",
    "osric": "Osric Vance",
    "tobias": "Tobias Marl",
    "lisbet": "Lisbet Crane",
}
PLACES = {"mill": "Coldharbour Mill", "row": "Tanner's Row", "bell": "the Drowned Bell"}
PREDICATES = (
    *STANDARD.values(),
    Predicate(name="wears_body_of", functional=True, meaning="Whose.", says=("{subject} wears the body of {object}",)),
)
FACTS = (
    Fact(subject="osric", predicate="status", object="dead", valid_from=12.0, source="lore:osric"),
    Fact(subject="osric", predicate="father", object="ivo", source="lore:osric"),
    Fact(subject="mara", predicate="age", object=34, source="lore:mara"),
    Fact(subject="mara", predicate="eye_colour", object="hazel", source="lore:mara"),
    Fact(subject="ivo", predicate="wears_body_of", object="Tobias Marl", source="lore:ivo"),
    Fact(subject="lisbet", predicate="spouse", object="mara", source="lore:lisbet"),
)
QUESTS = ("The Salt Audit", "The Drowned Clock", "The Last Toll")


def entity(key: str, kind: Kind, name: str, **data: object) -> Entity:
    return Entity(id=key, kind=kind, region=None, version=1, tick=0, data={"name": name, **data})


def world(moment: float | None = None) -> Knowledge:
    nodes = [
        PlotNode(
            id=title.lower().replace(" ", "_"),
            kind="quest",
            title=title,
            requires=Requires(all=(NodeTerm(node=QUESTS[n - 1].lower().replace(" ", "_")),)) if n else Requires(),
        )
        for n, title in enumerate(QUESTS)
    ]
    graph = StoredGraph(version=1, **dict(PlotGraph(id="g", title="G", nodes=tuple(nodes))))
    entities = [entity(key, "npc", name, alive=key not in {"osric", "tobias"}) for key, name in PEOPLE.items()]
    entities += [entity(key, "place", name) for key, name in PLACES.items()]
    return build(Canon(predicates=PREDICATES, facts=FACTS, plots=(graph,)), entities, moment)


@pytest.fixture(scope="module")
def known() -> Knowledge:
    return world()


def told(checked: Checked) -> tuple[bool | None, list[str]]:
    return checked.consistent, [violation.code for violation in checked.violations]


@pytest.mark.parametrize(
    "text",
    [
        "Mara Thorne opened the door. Mara Thorne is thirty-four.",
        "Osric Vance is dead.",
        "Osric Vance's father is Ivo Sark.",
        "At dawn Mara Thorne sat in Coldharbour Mill. At noon Mara Thorne sat in Tanner's Row.",
    ],
)
def test_plain_sentences_that_agree_are_called_consistent(known: Knowledge, text: str) -> None:
    done = check(text, known)
    assert (told(done), done.reasons) == ((True, []), {})


@pytest.mark.parametrize(
    "text",
    [
        "Osric Vance is dead. He walked to Coldharbour Mill.",
        "Osric Vance's father is Ivo Sark. He walked to Coldharbour Mill.",
        "Tobias Marl is dead. Mara Thorne sat. She walked to Coldharbour Mill.",
        "Mara Thorne is dead. Her eyes are hazel. She sat in Coldharbour Mill.",
    ],
)
def test_a_pronoun_that_may_mean_somebody_dead_is_not_understood(known: Knowledge, text: str) -> None:
    done = check(text, known)
    assert done.consistent is None
    assert done.reasons["pronoun"] >= 1


@pytest.mark.parametrize(
    "text",
    [
        "Osric Vance lives in Coldharbour Mill.",
        "Osric Vance is married to Mara Thorne.",
        "Osric Vance is forty years old.",
        "Osric Vance is a schoolmaster.",
        "Osric Vance was in Coldharbour Mill.",
        "Mara Thorne is dead.",
        "Mara Thorne was never alive.",
        "Mara Thorne's mother is Mara Thorne.",
        "Ivo Sark is married to Mara Thorne.",
        "Mara Thorne is the daughter of Ivo Sark.",
        "At noon Mara Thorne sat in Coldharbour Mill and stood in Tanner's Row.",
        "At noon Mara Thorne sat in Coldharbour Mill. At twelve o'clock Mara Thorne sat in Tanner's Row.",
        "At midday Mara Thorne sat in Coldharbour Mill. At daybreak Mara Thorne sat in Tanner's Row.",
        "At noon Mara Thorne stood outside Coldharbour Mill. At noon Mara Thorne sat in Tanner's Row.",
        "Mara Thorne finished The Last Toll.",
        "Mara Thorne finished The Salt Audit. Mara Thorne finished The Last Toll.",
    ],
)
def test_what_no_rule_can_be_sure_of_is_not_called_consistent(known: Knowledge, text: str) -> None:
    assert told(check(text, known)) == (None, [])


def test_at_another_time_than_the_death_somebody_may_act_but_is_not_said_to_be_dead() -> None:
    before = world(3.0)
    assert told(check("Osric Vance opened the door.", before)) == (True, [])
    assert told(check("Osric Vance is dead.", before)) == (None, [])
    assert told(check("Tobias Marl opened the door.", before)) == (None, [])  # since when, nobody says


@pytest.mark.parametrize(
    "text",
    [
        "Osric Vance is dead. Osric Vance is alive.",
        "Ivo Sark killed Mara Thorne. Mara Thorne is alive.",
        "Ivo Sark is not thirty. Ivo Sark is thirty.",
        "Ivo Sark is not forty. Ivo Sark is thirty. Ivo Sark is thirty-one.",
        "Ivo Sark is thirty. Ivo Sark is not thirty.",
        "Ivo Sark was born in Tanner's Row. Ivo Sark was not born in Tanner's Row.",
        "Ivo Sark is a clerk. Ivo Sark is a baker.",
        "Lisbet Crane lives in Tanner's Row. Lisbet Crane lives in Coldharbour Mill.",
    ],
)
def test_two_sentences_that_contradict_each_other_are_never_consistent(known: Knowledge, text: str) -> None:
    more = replace(known.copy(), occupations={"clerk", "baker"})
    assert told(check(text, more)) == (False, ["functional_fact"])


LORE: list[object] = [
    "Ivo Sark perished long ago in the fire.",
    "He died in the fire.",
    "Dead since the fire.",
    "Ivo Sark is not a clerk.",
    "At noon Ivo Sark was in Coldharbour Mill.",
    "Ivo Sark finished The Salt Audit.",
    ["Ivo Sark is thirty.", 3],
    7,
    None,
    {"alive": False},
    {"status": "deceased"},
    {"status": ["dead"]},
    {"age": {"value": 30}},
    {"age": "about thirty"},
    {"eye_colour": "grey-green"},
    {"alias": {"x": "The Gull"}},
]


@pytest.mark.parametrize("lore", LORE, ids=repr)
def test_lore_that_no_rule_can_use_is_counted_and_takes_every_true_away(known: Knowledge, lore: object) -> None:
    done = check("Ivo Sark opened the door.", with_lore(known, {"Ivo Sark": lore}))
    assert (told(done), done.lore_not_understood) == ((None, []), 1)
    assert done.understood == 1


def test_lore_that_the_rules_can_use_is_held_against_the_text(known: Knowledge) -> None:
    for lore in ({"age": "40", "status": "alive", "eye_colour": "Gray"}, "Ivo Sark is forty. Ivo Sark has grey eyes."):
        more = with_lore(known, {"Ivo Sark": lore})
        assert more.lore_not_understood == 0
        assert told(check("Ivo Sark is forty. Ivo Sark has grey eyes.", more)) == (True, [])
        assert told(check("Ivo Sark is fifty. Ivo Sark has green eyes.", more)) == (False, ["functional_fact"] * 2)


def test_a_value_that_agrees_does_not_silence_one_that_disagrees(known: Knowledge) -> None:
    (violation,) = check(
        "Mara Thorne has green eyes.", with_lore(known, {"Mara Thorne": {"eye_colour": "green"}})
    ).violations
    assert violation.conflicts_with.text == "Mara Thorne: eye_colour = hazel"
    both = known.copy()
    both.hold("mara", "age", Held(35, "world: mara", "Mara Thorne: age = 35"))
    assert told(check("Mara Thorne is thirty-four.", both)) == (None, [])


@pytest.mark.parametrize(
    "text",
    [
        "“Osric Vance!” cried Mara Thorne.",
        '"Osric Vance," said Mara Thorne.',
        "'Osric Vance walked to Coldharbour Mill,' said Mara Thorne.",
        "Mara Thorne whispered, 'Osric Vance came back.'",
        "Mara Thorne whispered 'Osric Vance came back'.",
        "Osric Vance left three books to the school.",
        "Mara Thorne read the letter that Osric Vance wrote.",
        "Mara Thorne read the letter Osric Vance wrote.",
        "The coat Osric Vance wore hung on the hook.",
        "Nobody walked where Osric Vance walked.",
        "Mara Thorne had a black eye.",
        "In the photograph, Osric Vance smiled at the camera.",
        "Osric Vance sat for this portrait.",
        "Osric Vance walked here every day until he drowned.",
        "At noon Mara Thorne was in Coldharbour Mill. Two days passed. At noon Mara Thorne was in Tanner's Row.",
        "At noon Mara Thorne was in Coldharbour Mill. A week went by. At noon Mara Thorne was in Tanner's Row.",
    ],
)
def test_what_good_prose_says_raises_no_false_alarm(known: Knowledge, text: str) -> None:
    assert told(check(text, known)) == (None, [])


@pytest.mark.parametrize(
    "text",
    [
        "The dogs' bowl stood there. Osric Vance opened the door. The cats' bowl stood there.",
        "In the morning Osric Vance opened the door.",
        "At the top of the stairs Osric Vance opened the door.",
        "That night Osric Vance opened the door.",
    ],
)
def test_what_is_told_plainly_is_still_found(known: Knowledge, text: str) -> None:
    assert told(check(text, known)) == (False, ["dead_actor"])


def test_canons_own_sentence_about_a_name_is_no_violation(known: Knowledge) -> None:
    assert check("Ivo Sark wears the body of Tobias Marl.", known).violations == []
    assert told(check("Ivo Sark wears the body of Lisbet Crane.", known)) == (False, ["functional_fact"])


def test_what_was_done_is_not_said_to_be_undone(known: Knowledge) -> None:
    progress = Progress(frozenset({"the_salt_audit"}), frozenset({"the_drowned_clock", "the_last_toll"}))
    done = replace(known.copy(), progress=progress)
    assert told(check("Mara Thorne finished The Drowned Clock.", done)) == (True, [])
    assert told(check("The Salt Audit was not done.", done)) == (None, [])


@pytest.mark.parametrize(
    "part", ['"A" Bb. ', "At noon Mara Thorne was in Coldharbour Mill. At noon Mara Thorne was in Tanner's Row. "]
)
def test_quotes_and_places_take_time_in_line_with_the_text(known: Knowledge, part: str) -> None:
    def took(count: int) -> float:
        text = part * count
        began = time.process_time()
        check(text, known)
        return time.process_time() - began

    count = 90_000 // len(part)
    quarter, whole = (min(took(size) for _ in range(2)) for size in (count // 4, count))
    assert whole <= 8 * quarter  # what is quadratic takes sixteen times as long
