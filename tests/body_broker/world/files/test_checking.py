"""World files before any store: what fits, and that everything that is wrong with one is named at once, by its place."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from body_broker.errors import BadInput, NotFound
from body_broker.lore.model import KNOWLEDGE_BYTES_MAX
from body_broker.world.files import checking
from body_broker.world.files.checking import STARTER, examine, open_world
from body_broker.world.files.model import FORMAT, schema
from body_broker.world.files.reading import DEPTH_MAX

SMALL: dict[str, Any] = {
    "format": FORMAT,
    "entities": {
        "regions": [{"id": "marsh", "name": "The marsh"}],
        "places": [{"id": "hut", "region": "marsh", "name": "The hut", "exits": []}],
        "factions": [{"id": "carters", "name": "The carters", "stance": {}}],
        "npcs": [
            {"id": "hob", "region": "marsh", "name": "Hob", "place": "hut", "faction": "carters", "inventory": ["tin"]}
        ],
        "items": [
            {"id": "tin", "region": "marsh", "name": "A tin", "holder": "hob"},
            {"id": "coin", "region": "marsh", "name": "A coin", "holder": "tin"},
        ],
        "flags": [{"id": "found", "value": False}],
        "quests": [
            {
                "id": "look",
                "title": "Look",
                "giver": "hob",
                "requires": [{"entity": "found", "field": "value", "equals": True}],
            }
        ],
    },
    "predicates": [
        {"name": "age", "functional": True, "meaning": "In whole years."},
        {"name": "home", "functional": True, "meaning": "The id of the place where the subject lives."},
        {"name": "friend", "functional": False, "meaning": "The id or name of a friend of the subject."},
    ],
    "facts": [
        {"subject": "hob", "predicate": "age", "object": 36, "valid_to": 10.0, "source": "lore:hob"},
        {"subject": "hob", "predicate": "age", "object": 37, "valid_from": 10.0, "source": "lore:hob"},
        {"subject": "hob", "predicate": "home", "object": "hut", "source": "lore:hob"},
        {
            "subject": "Hob's mother",
            "predicate": "friend",
            "object": "Mrs. Oake",
            "source": "lore:hob",
            "known_by": ["hob"],
        },
    ],
    "plots": [
        {
            "id": "the-tin",
            "title": "The tin",
            "nodes": [
                {"id": "look", "kind": "quest", "title": "Look", "effects": [{"flag": "found"}, {"item": "tin"}]},
                {
                    "id": "poor",
                    "kind": "ending",
                    "title": "Poor",
                    "requires": {"all": [{"flag": "found"}, {"node": "look"}]},
                },
            ],
            "edges": [{"src": "look", "dst": "poor"}],
        }
    ],
    "lore": [{"id": "hob", "title": "Hob", "text": "He is in pork.", "region": "marsh", "known_by": ["hob"]}],
}

Write = Callable[[object], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(content: object) -> Path:
        file = tmp_path / "world.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
        return file

    return to_file


def changed(**sections: Any) -> dict[str, Any]:
    """The small world with other sections; those of `entities` one by one."""
    entities = SMALL["entities"] | sections.pop("entities", {})
    return SMALL | {"entities": entities} | sections


def test_a_sound_world_has_no_problem_and_is_counted(write: Write) -> None:
    world, problems = examine(write(SMALL))

    assert (problems, world.warnings) == ([], [])
    assert {name: n for name, n in world.counts().items() if n} == {
        "regions": 1, "places": 1, "factions": 1, "npcs": 1, "items": 2, "quests": 1, "flags": 1,
        "predicates": 3, "facts": 4, "plots": 1, "lore": 1,
    }  # fmt: skip


def test_everything_that_is_not_there_is_named_at_once_by_its_place(write: Write) -> None:
    broken = changed(
        entities={
            "places": [{"id": "hut", "region": "mersh", "name": "The hut", "exits": ["hut", "rood"], "key": "kee"}],
            "factions": [{"id": "carters", "name": "The carters", "stance": {"nobody": 5}}],
            "npcs": [
                {"id": "hob", "region": "marsh", "name": "Hob", "place": "hat", "faction": "fictions",
                 "inventory": ["tin", "pan"], "disposition": {"ghost": 1}}
            ],
            "quests": [{"id": "look", "title": "Look", "giver": "hub", "requires": [{"entity": "fund", "field": "value", "equals": True}]}],
            "items": [{"id": "tin", "region": "marsh", "name": "A tin", "holder": "hobb"}],
        },
        facts=[
            {"subject": "hobb", "predicate": "age", "object": 36, "source": "x"},
            {"subject": "hob", "predicate": "home", "object": "hat", "source": "x"},
            {"subject": "hob", "predicate": "friend", "object": "gost", "source": "x"},
            {"subject": "hob", "predicate": "eats", "object": "bread", "source": "x", "known_by": ["everyone"]},
        ],
        plots=[
            {
                "id": "p", "title": "P",
                "nodes": [
                    {"id": "look", "kind": "quest", "title": "L", "effects": [{"flag": "fond"}, {"item": "ton"}],
                     "requires": {"any": [{"node": "lock"}, {"all": [{"subject": "hop", "predicate": "age", "object": 3}]}]}}
                ],
                "edges": [{"src": "look", "dst": "pour"}],
            }
        ],
        lore=[{"id": "hob", "title": "Hob", "text": "x", "region": "hut", "known_by": ["hob", "bob"]}],
    )  # fmt: skip

    with pytest.raises(BadInput, match="and 22 more") as raised:
        open_world(write(broken))

    assert raised.value.details["problems"] == [
        "entities.places[0].region: there is no region 'mersh'",
        "entities.places[0].exits[1]: there is no place 'rood'",
        "entities.places[0].key: there is no item 'kee'",
        "entities.factions[0].stance.nobody: there is no entity 'nobody'",
        "entities.npcs[0].faction: there is no faction 'fictions'",
        "entities.npcs[0].place: there is no place 'hat'",
        "entities.npcs[0].inventory[1]: there is no item 'pan'",
        "entities.npcs[0].disposition.ghost: there is no entity 'ghost'",
        "entities.items[0].holder: there is no npc or player or item 'hobb'",
        "entities.quests[0].giver: there is no entity 'hub'",
        "entities.quests[0].requires[0].entity: there is no entity 'fund'",
        "facts[0].subject: there is no entity 'hobb'",
        "facts[1].object: there is no entity 'hat'",
        "facts[2].object: there is no entity 'gost'",
        "facts[3].predicate: there is no predicate 'eats'",
        "facts[3].known_by[0]: there is no npc or player or faction 'everyone'",
        "plots[0].edges[0].dst: there is no node 'pour' in this graph",
        "plots[0].nodes[0].requires: there is no node 'lock'",
        "plots[0].nodes[0].requires: there is no entity 'hop'",
        "plots[0].nodes[0].effects[0]: there is no flag 'fond'",
        "plots[0].nodes[0].effects[1]: there is no item 'ton'",
        "lore[0].known_by[1]: there is no npc or player or faction 'bob'",
        "lore[0].region: 'hut' is of kind place, not region",
    ]


def test_what_does_not_fit_the_format_does_not_hide_what_is_not_there(write: Write) -> None:
    broken = changed(
        entities={
            "npcs": [
                {"id": "Not An Id", "name": "x"},
                {"id": "hob", "name": "Hob", "health": 101, "wings": 2, "inventory": ["tin"]},
                {"id": "ann", "name": "Ann", "place": "nowhere"},
            ],
            "ghosts": [],
        },
        facts=[{"subject": "hob", "predicate": "age", "object": [1], "source": "x"}, *SMALL["facts"]],
        colour="red",
    )

    _, problems = examine(write(broken))

    assert [problem.split(": ")[0] for problem in problems] == [
        "entities.npcs[0].id",
        "entities.npcs[1].health",
        "entities.npcs[1].wings",
        "entities.ghosts",
        "facts[0].object",
        "colour",
        "entities.npcs[2].place",
    ]
    assert problems[4] == (
        "facts[0].object: Input should be a valid string, or: Input should be a valid boolean,"
        " or: Input should be a valid integer, or: Input should be a valid number"
    )
    assert not any("no npc or player or item 'hob'" in problem for problem in problems), "he is there, though odd"


def test_an_entry_after_a_bad_one_keeps_its_number(write: Write) -> None:
    people = [{"id": "x", "name": "", "place": "hut"}, {"id": "y", "name": "Y", "place": "nowhere"}]

    _, problems = examine(write(changed(entities={"players": people})))

    assert [problem.split(": ")[0] for problem in problems] == ["entities.players[0].name", "entities.players[1].place"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not JSON (line 1, column 1)"),
        ('{"format": "body-broker/world/1",}', "is not JSON (line 1, column 34)"),
        ("[]", "is no JSON object"),
        ('{"format": "body-broker/world/1", "facts": NaN}', "holds NaN, which is no number"),
        ('{"format": "body-broker/world/1", "facts": [-Infinity]}', "holds -Infinity, which is no number"),
        ('{"format": "body-broker/world/1", "facts": [1e999]}', "facts[0]: holds a number that is too large"),
        (
            '{"lore": [{"metadata": {"n": 18446744073709551616}}]}',
            "lore[0].metadata.n: holds a whole number of more than 64 bits",
        ),
        ('{"facts": [{"object": -9223372036854775809}]}', "facts[0].object: holds a whole number of more than 64 bits"),
        ('{"format": "body-broker/world/1", "facts": [' + "9" * 5000 + "]}", "holds a number that is too long"),
        ('{"format": "a", "facts": [], "format": "b"}', "has 'format' twice in one object"),
        ('{"a\\u202eb": 1}', "has a name with invisible characters: 'ab'"),
        ("[" * 100_000, f"is nested deeper than {DEPTH_MAX} levels"),
        ('{"x": ' + "[" * 40 + "]" * 40 + "}", f"is nested deeper than {DEPTH_MAX} levels"),
    ],
    ids=[
        "empty",
        "comma",
        "list",
        "nan",
        "infinity",
        "1e999",
        "65 bits",
        "-65 bits",
        "digits",
        "twice",
        "hidden name",
        "deep",
        "deep whole",
    ],
)
def test_what_is_no_world_is_refused_in_words(write: Write, text: str, said: str) -> None:
    with pytest.raises(BadInput) as raised:
        open_world(write(text))
    assert raised.value.details["problems"] == [f"world.json: {said}"]


def test_bytes_that_are_no_text_and_too_many_bytes_are_refused(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write("")
    file.write_bytes(b'{"format": "\xff"}')
    assert examine(file)[1] == ["world.json: is not UTF-8 text (byte 12)"]
    monkeypatch.setattr("body_broker.world.files.reading.FILE_BYTES_MAX", 100)
    assert "is too large" in examine(write(SMALL))[1][0]


def test_another_format_is_refused_and_says_which_it_must_be(write: Write) -> None:
    assert examine(write({"format": "body-broker/world/2"}))[1] == ["format: Input should be 'body-broker/world/1'"]
    assert examine(write({"lore": []}))[1] == ["format: Field required"]


def test_what_is_not_there_at_all_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"There is no file or folder none\.json"):
        open_world(tmp_path / "none.json")
    with pytest.raises(BadInput, match="holds 0 JSON files"):
        open_world(tmp_path)


def test_an_id_twice_over_all_kinds_and_files_is_said_with_both_places(tmp_path: Path) -> None:
    one = {
        "format": FORMAT,
        "entities": {"npcs": [{"id": "hob", "name": "Hob"}]},
        "lore": [{"id": "a", "title": "A", "text": "x"}],
    }
    two = {
        "format": FORMAT,
        "entities": {"flags": [{"id": "hob", "value": 1}]},
        "lore": [
            {"id": "a", "title": "A", "text": "y"},
            {"id": "a", "title": "A", "text": "z", "index": "persona:hob"},
        ],
        "predicates": [{"name": "age", "functional": True, "meaning": "x"}] * 2,
        "plots": [{"id": "p", "title": "P", "nodes": [{"id": "n", "kind": "beat", "title": "N"}] * 2}] * 2,
    }
    (tmp_path / "1.json").write_text(json.dumps(one))
    (tmp_path / "2.json").write_text(json.dumps(two))

    _, problems = examine(tmp_path)

    assert problems == [
        "2.json: entities.flags[0].id: 'hob' is already at 1.json: entities.npcs[0].id",
        "2.json: predicates[1].name: 'age' is already at 2.json: predicates[0].name",
        "2.json: plots[1].id: 'p' is already at 2.json: plots[0].id",
        "2.json: plots[0].nodes[1].id: 'n' is already at 2.json: plots[0].nodes[0].id",
        "2.json: plots[1].nodes[0].id: 'n' is already at 2.json: plots[0].nodes[0].id",
        "2.json: plots[1].nodes[1].id: 'n' is already at 2.json: plots[0].nodes[0].id",
        "2.json: lore[0].id: 'shared/a' is already at 1.json: lore[0].id",
    ]


def test_what_holds_itself_is_refused_by_the_way_round(write: Write) -> None:
    items = [
        {"id": "box", "name": "Box", "holder": "bag"},
        {"id": "bag", "name": "Bag", "holder": "chest"},
        {"id": "chest", "name": "Chest", "holder": "box"},
        {"id": "sack", "name": "Sack", "holder": "sack"},
        {"id": "pea", "name": "Pea", "holder": "sack"},
    ]

    _, problems = examine(write({"format": FORMAT, "entities": {"items": items}}))

    assert problems == [
        "entities.items[0].holder: it holds itself: box in bag in chest in box",
        "entities.items[1].holder: it holds itself: bag in chest in box in bag",
        "entities.items[2].holder: it holds itself: chest in box in bag in chest",
        "entities.items[3].holder: it holds itself: sack in sack",
    ]


def test_two_values_at_one_time_of_a_functional_predicate_are_a_contradiction(write: Write) -> None:
    facts = [*SMALL["facts"], {"subject": "hob", "predicate": "age", "object": 40, "valid_from": 9.5, "source": "x"}]

    assert examine(write(changed(facts=facts)))[1] == [
        "facts[4]: facts[0] says another 'age' of 'hob' at the same time"
    ]


def test_a_fact_about_an_entity_by_its_name_or_alias_is_refused_with_its_place(write: Write) -> None:
    name = SMALL["entities"]["npcs"][0]["name"]
    facts = [
        *SMALL["facts"],
        {"subject": "hob", "predicate": "alias", "object": "The Pork Man", "source": "x"},
        {"subject": name, "predicate": "age", "object": 40, "source": "x"},
        {"subject": "the pork  man", "predicate": "age", "object": 41, "source": "x"},
        {"subject": "Nobody's Aunt", "predicate": "age", "object": 42, "source": "x"},
    ]

    alias = {"name": "alias", "functional": False, "meaning": "Another name of the subject, as text."}
    predicates = [*SMALL["predicates"], alias]

    assert examine(write(changed(facts=facts, predicates=predicates)))[1] == [
        f"facts[5].subject: {name!r} is a name of 'hob': give the id",
        "facts[6].subject: 'the pork  man' is a name of 'hob': give the id",
    ]


def test_what_disagrees_but_can_be_is_a_warning(write: Write) -> None:
    entities = {
        "items": [{"id": "tin", "name": "A tin", "holder": "hob"}, {"id": "coin", "name": "C", "holder": "hob"}],
        "players": [{"id": "ann", "name": "Ann", "place": "hut", "inventory": ["tin"]}],
    }
    world, problems = examine(write(changed(entities=entities, lore=[{"id": "other", "title": "O", "text": "x"}])))

    assert problems == []
    assert world.warnings == [
        "entities.players[0].inventory[0]: the holder of 'tin' is 'hob'",
        "entities.items[1].holder: 'hob' does not have it in its inventory",
        "entities.players[0].region: it is in None, but 'hut' is in 'marsh'",
        *[f"facts[{n}].source: there is no lore 'hob'" for n in range(4)],
    ]


def test_hostile_text_loses_what_nobody_can_see(write: Write) -> None:
    npc = {
        "id": "hob",
        "name": "H\u202eo\u0000b\u200b",
        "description": "\x1b[31mred",
        "place": "hut",
        "inventory": ["tin"],
        "region": "marsh",
    }
    lore = [{"id": "a", "title": "T\u2066itle", "text": "a\u200bb\n"}]

    world, problems = examine(write(changed(entities={"npcs": [npc]}, lore=lore, facts=[])))

    assert problems == []
    entry = next(entry for _, entry in world.entities if entry.id == "hob")
    assert entry.model_dump()["name"] == "Hob"
    assert entry.model_dump()["description"] == "[31mred"
    assert (world.lore[0].title, world.lore[0].text) == ("Title", "ab\n")


def test_lore_is_read_from_files_of_the_folder_and_from_nowhere_else(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("not yours")
    folder = tmp_path / "world"
    (folder / "lore").mkdir(parents=True)
    (folder / "lore" / "hob.md").write_text("# Hob\r\n\r\nIn pork.")
    (folder / "lore" / "blank.txt").write_text(" \u200b\n")
    (folder / "lore" / "bytes.txt").write_bytes(b"\xff\xfe")
    (folder / "link.txt").symlink_to(secret)
    files = [
        "lore/hob.md",
        "../secret.txt",
        str(secret),
        "link.txt",
        "lore/none.md",
        "lore/blank.txt",
        "lore/bytes.txt",
        "world.json",
        "lore/x\0.md",
    ]
    entries: list[dict[str, Any]] = [{"id": str(n), "title": "T", "file": file} for n, file in enumerate(files)]
    entries += [{"id": "both", "title": "T", "text": "x", "file": "lore/hob.md"}, {"id": "neither", "title": "T"}]
    entries += [
        {"id": "blank", "title": " ", "text": "x"},
        {"id": "big", "title": "T", "text": "x", "metadata": {"x": "y" * KNOWLEDGE_BYTES_MAX}},
    ]
    (folder / "world.json").write_text(json.dumps({"format": FORMAT, "lore": entries}))

    world, problems = examine(folder)

    assert [(e.text, e.format, e.file) for e in world.lore] == [("# Hob\n\nIn pork.", "markdown", None)]
    assert [problem.removeprefix("world.json: ") for problem in problems] == [
        "lore[1]: file '../secret.txt' lies outside the folder of the world file",
        f"lore[2]: file {str(secret)!r} lies outside the folder of the world file",
        "lore[3]: file 'link.txt' lies outside the folder of the world file",
        "lore[4]: file 'lore/none.md' is not there",
        "lore[5]: file 'lore/blank.txt' holds no text",
        "lore[6]: file 'lore/bytes.txt' is not UTF-8 text",
        "lore[7]: file 'world.json' is no .md or .txt file",
        "lore[8]: file 'lore/x.md' is not there",  # the NUL was taken out of it
        "lore[9]: needs either a text or a file",
        "lore[10]: needs either a text or a file",
        "lore[11]: has no title",
        "lore[12]: has more than 4096 bytes beside title and text",
    ]
    assert checking.KNOWLEDGE_BYTES_MAX == KNOWLEDGE_BYTES_MAX, "what the lore would refuse is refused before"


def test_a_pipe_is_no_world_and_blocks_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "world.json")

    with pytest.raises(NotFound):
        open_world(tmp_path / "world.json")
    (tmp_path / "other.json").write_text(json.dumps({"format": FORMAT}))
    assert examine(tmp_path)[1] == ["world.json: is no file"]


def test_several_files_may_not_break_together_what_none_breaks_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "ENTITIES_MAX", 3)
    for name in "ab":
        flags = [{"id": f"{name}{n}", "value": n} for n in range(2)]
        (tmp_path / f"{name}.json").write_text(json.dumps({"format": FORMAT, "entities": {"flags": flags}}))

    assert examine(tmp_path)[1] == ["entities: there are 4, and a world may have 3"]


def test_a_thousand_problems_are_told_and_the_rest_is_counted(write: Write) -> None:
    flags = [{"id": f"f{n}"} for n in range(1_200)]

    with pytest.raises(BadInput, match="and 1199 more") as raised:
        open_world(write({"format": FORMAT, "entities": {"flags": flags}}))

    problems = raised.value.details["problems"]
    assert isinstance(problems, list)
    assert (len(problems), problems[-1]) == (1_001, "... and 200 more")


def test_the_published_schema_takes_the_starter_world_and_refuses_what_we_refuse() -> None:
    published: Any = Draft202012Validator(schema())  # its hints name no type of a JSON value
    Draft202012Validator.check_schema(schema())

    for file in sorted(STARTER.glob("*.json")):
        assert list(published.iter_errors(json.loads(file.read_text("utf-8")))) == []
    assert published.is_valid(SMALL)
    for odd in (changed(colour="red"), changed(format="x"), changed(entities={"npcs": [{"id": "a b", "name": "x"}]})):
        assert not published.is_valid(odd)


def test_the_example_in_the_document_is_a_sound_world_and_its_counts_are_the_starter_s(write: Write) -> None:
    page = (Path(__file__).parents[4] / "docs" / "world.md").read_text("utf-8")
    example = page.split("```json\n")[1].split("```")[0]

    world, problems = examine(write(example))

    assert (problems, world.warnings) == ([], [])
    assert len(world.entities) == 5
    counts = ", ".join(f"{count} {name}" for name, count in open_world(STARTER).counts().items() if count)
    assert f"Sound: {counts}." in page
