from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from body_broker.errors import PolicyError
from policies.catalogue import Catalogue
from policies.decision import Allow, Ask, Deny, Identity
from policies.engine import Policy
from policies.rules import OPTIONAL_DIR, SHIPPED_DIR
from tests.policies.conftest import Studio
from tests.policies.oracle import call, person

GATE = 'context has approval && (context.approval.own || context.approval.groups.contains("sre"))'
HEAD = '@approval("mfa") @approvers("sre")'

BROKEN = {
    "not cedar": ("permit(", None, "is not Cedar"),
    "no @id": ('forbid (principal, action in Hub::Action::"own", resource);', None, "needs an @id"),
    "an odd @id": ('@id("Not Nice") forbid (principal, action, resource);', "Not Nice", "needs an @id"),
    "a reserved @id": ('@id("policy-error") forbid (principal, action, resource);', "policy-error", "its own"),
    "our @id": ('@id("depth-cap") forbid (principal, action, resource);', "depth-cap", "another rule has too"),
    "a template": ('@id("x") forbid (principal == ?principal, action, resource);', None, "template"),
    "an unknown tool": (
        '@id("x") forbid (principal, action == Hub::Action::"red_state", resource);', "x", "does not fit the schema",
    ),
    "an unknown tier": (
        '@id("x") forbid (principal == Hub::Tier::"platinum", action, resource);', "x", "does not fit the schema",
    ),
    "an unknown role": (
        '@id("x") forbid (principal in Hub::Role::"boss", action, resource);', "x", "does not fit the schema",
    ),
    "a wrong type": (
        '@id("x") forbid (principal, action == Hub::Action::"read_state", resource) when { context.arguments.fresh == 1 && context.arguments.fresh };',
        "x",
        "does not fit the schema",
    ),
    "an optional argument taken as given": (
        '@id("x") forbid (principal, action == Hub::Action::"read_state", resource) when { context.arguments.region == "a" };',
        "x",
        "does not fit the schema",
    ),
    "a float": (
        '@id("x") forbid (principal, action, resource) when { context.arguments has radius && context.arguments.radius == 1 };',
        "x",
        "reads the argument radius",
    ),
    "a misspelt argument behind `has`": (
        '@id("x") forbid (principal, action, resource) when { context.arguments has frsh && context.arguments.frsh };',
        "x",
        "reads the argument frsh",
    ),
    "a misspelt fact": (
        '@id("x") forbid (principal, action, resource) when { context.facts.own_ncp };', "x", "does not fit the schema",
    ),
    "all arguments at once": (
        '@id("x") forbid (principal, action, resource) when { context.arguments == context.arguments };',
        "x",
        "uses the whole context",
    ),
    "the context as a value": (
        '@id("x") forbid (principal, action, resource) when { context == context };', "x", "uses the whole context",
    ),
    "a permit of everything": ('@id("x") permit (principal, action, resource);', "x", "name granting groups"),
    "a permit of a modifier": (
        '@id("x") permit (principal, action in Hub::Action::"external", resource);', "x", "name granting groups",
    ),
    "a permit of one tool": (
        '@id("x") permit (principal, action == Hub::Action::"read_state", resource);', "x", "name granting groups",
    ),
    "an approval on a permit": (
        f'@id("x") {HEAD} permit (principal, action in Hub::Action::"own", resource) when {{ {GATE} }};', "x", "forbid",
    ),
    "a permit that reads the approval": (
        f'@id("x") permit (principal, action in Hub::Action::"own", resource) when {{ {GATE} }};', "x", "forbid",
    ),
    "an approval nobody reads": (f'@id("x") {HEAD} forbid (principal, action, resource);', "x", "or neither"),
    "an approval nobody is asked for": (
        f'@id("x") forbid (principal, action, resource) unless {{ {GATE} }};', "x", "or neither",
    ),
    "a misspelt channel": (
        f'@id("x") @approval("slakc") @approvers("sre") forbid (principal, action, resource) unless {{ {GATE} }};',
        "x",
        "not a list of slack, mfa, local",
    ),
    "no approvers": (
        f'@id("x") @approval("mfa") forbid (principal, action, resource) unless {{ {GATE} }};', "x", "@approvers",
    ),
    "a quorum in words": (
        f'@id("x") {HEAD} @quorum("two") forbid (principal, action, resource) unless {{ {GATE} }};', "x", "@quorum",
    ),
    "a ttl without a unit": (
        f'@id("x") {HEAD} @ttl("10") forbid (principal, action, resource) unless {{ {GATE} }};', "x", "@ttl",
    ),
    "routes without an approval": (
        '@id("x") @approvers("sre") forbid (principal, action, resource);', "x", "without @approval",
    ),
    "a promise of the wrong group": (
        f'@id("x") @approval("mfa") @approvers("security") forbid (principal, action, resource) unless {{ {GATE} }};',
        "x",
        "1 of security through mfa",
    ),
    "a promise of too few": (
        '@id("x") @approval("slack") @approvers("sre") forbid (principal, action, resource) unless { context has approval && context.approval.count >= 2 };',
        "x",
        "1 of sre through slack",
    ),
    "a promise of the wrong channel": (
        '@id("x") @approval("slack,local") @approvers("sre") forbid (principal, action, resource) unless { context has approval && context.approval.via.contains("slack") };',
        "x",
        "1 of sre through local",
    ),
    "mfa without a quorum that the asker's own would not open": (
        '@id("x") @approval("mfa") @approvers("sre") forbid (principal, action, resource) unless { context has approval && context.approval.groups.contains("sre") };',
        "x",
        "the asker's own second factor",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_studios_broken_file_stops_the_start_and_names_file_and_rule(studio: Studio, case: str) -> None:
    text, rule, complaint = BROKEN[case]
    with pytest.raises(PolicyError) as caught:
        studio(text)
    assert complaint in caught.value.message
    assert "studio.cedar" in caught.value.message
    assert caught.value.details["rule"] == rule
    assert rule is None or rule in caught.value.message


def test_what_cedar_cannot_parse_is_placed_by_the_rule_and_line_it_stands_in(studio: Studio) -> None:
    good = (
        '@id("fine") forbid (principal, action, resource) when { context.depth > 5 };\n// a remark; with a semicolon\n'
    )
    with pytest.raises(PolicyError, match=r"studio\.cedar: the rule torn is not Cedar, at or after line") as caught:
        studio(f'{good}\n@id("torn")\nforbid (principal action, resource);\n{good}')
    assert "unexpected" not in caught.value.message, "another exception's words are not repeated"


def test_the_validators_words_are_given_beside_the_message(studio: Studio) -> None:
    with pytest.raises(PolicyError) as caught:
        studio(BROKEN["an unknown role"][0])
    problems = caught.value.details["problems"]
    assert isinstance(problems, list)
    assert "boss" in problems[0]


def test_two_files_with_one_id_are_both_named(studio: Studio) -> None:
    rule = '@id("twice") forbid (principal, action, resource) when { context.depth > 5 };'
    with pytest.raises(PolicyError, match=r"more\.cedar and studio\.cedar: the rule twice"):
        studio(rule, more=rule)


def test_a_file_that_is_not_text_stops_the_start(tmp_path: Path, catalogue: Catalogue) -> None:
    (tmp_path / "binary.cedar").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PolicyError, match=r"binary\.cedar cannot be read as UTF-8 text"):
        Policy.load(catalogue, tmp_path)


@pytest.mark.parametrize("name", ["missing", "."])
def test_a_directory_without_policies_stops_the_start(tmp_path: Path, catalogue: Catalogue, name: str) -> None:
    with pytest.raises(PolicyError, match="missing or holds no"):
        Policy.load(catalogue, tmp_path / name)


def test_a_studios_forbid_is_added_to_ours(studio: Studio) -> None:
    policy = studio(
        '@id("not-on-mondays") forbid (principal, action == Hub::Action::"page", resource) '
        'when { context.history.contains("security_read") };'
    )
    asked = call("page", Identity("tier:silver"))
    assert policy.decide(asked) == Allow(("silver-looks-things-up",))
    assert policy.decide(asked._replace(history=frozenset({"security_read"}))) == Deny(("not-on-mondays",))


def test_a_studios_permit_of_a_group_can_be_narrowed_to_one_tool(studio: Studio) -> None:
    policy = studio(
        '@id("anna-carries-out") permit (principal == Hub::Person::"anna", action in Hub::Action::"draft", resource) '
        'when { action == Hub::Action::"carry_out" };'
    )
    asked = call("carry_out", person())
    assert policy.decide(asked) == Allow(("anna-carries-out",))
    assert policy.decide(asked._replace(action="probe:draft")) == Deny(("default-deny:draft",))
    assert policy.decide(asked._replace(identities=(Identity("person:bob"),))) == Deny(("default-deny:draft",))
    assert "carry_out" in policy.visible((person(),))
    assert "carry_out" not in policy.visible((Identity("person:bob"),))


def test_silver_queues_changes_only_where_the_studio_opts_in(catalogue: Catalogue) -> None:
    asked = call("queue_change", Identity("tier:silver"), change={"op": "move"})
    assert Policy.load(catalogue).decide(asked) == Deny(("default-deny:queued",))
    opted = Policy.load(catalogue, OPTIONAL_DIR)
    assert opted.decide(asked) == Allow(("silver-queues-changes",))
    tainted = opted.decide(asked._replace(tainted=True))
    assert isinstance(tainted, Ask)
    assert tainted.rules == ("tainted-needs-approval",)


def test_the_policies_load_without_any_operation() -> None:
    assert Policy.load(Catalogue(())).visible((Identity("tier:bronze"),)) == frozenset()


def test_the_digest_is_that_of_rules_and_schema_not_of_blanks_and_remarks(
    policy: Policy, catalogue: Catalogue, studio: Studio
) -> None:
    rule = '@id("more") forbid (principal, action, resource) when { context.depth > 5 };'
    other = studio(rule)
    assert Policy.load(catalogue).digest == policy.digest
    assert other.digest != policy.digest
    assert studio(f"// a remark\n\n{rule}").digest == other.digest
    fewer = Catalogue(entry for entry in catalogue.entries.values() if entry.name != "page")
    assert Policy.load(fewer).digest != policy.digest


def test_the_digest_of_a_rule_is_its_own(policy: Policy, studio: Studio) -> None:
    other = studio('@id("more") forbid (principal, action, resource) when { context.depth > 5 };')
    digests = {rule.requirement.rule_digest for rule in policy.rules.values() if rule.requirement}
    assert {rule.requirement.rule_digest for rule in other.rules.values() if rule.requirement} == digests
    assert len(digests) == len([rule for rule in policy.rules.values() if rule.requirement])


def asking(group: str = "queued", when: str = "context.depth > 5", unless: str = GATE) -> str:
    """A studio's own rule that asks people, always with the same annotations."""
    head = f'@id("more") {HEAD} forbid (principal, action in Hub::Action::"{group}", resource)'
    return f"{head} when {{ {when} }} unless {{ {unless} }};"


@pytest.mark.parametrize(
    "changed",
    [{"when": "context.depth > 6"}, {"unless": f"context.depth < 2 || {GATE}"}, {"group": "write"}],
    ids=["when", "unless", "scope"],
)
def test_a_rule_whose_condition_changed_has_another_digest_though_its_annotations_stay(
    studio: Studio, changed: dict[str, str]
) -> None:
    texts = (asking(), f"// a remark\n{asking()}", asking(**changed))
    before, remarked, after = (studio(text).rules["more"].requirement for text in texts)
    assert before is not None
    assert after is not None
    assert remarked == before
    assert after.rule_digest != before.rule_digest
    assert replace(after, rule_digest=before.rule_digest) == before, "its annotations ask for the same"


def test_our_files_stand_in_the_package() -> None:
    assert {file.name for file in SHIPPED_DIR.glob("*.cedar")} == {"tiers.cedar", "roles.cedar", "forbids.cedar"}
    assert {file.name for file in OPTIONAL_DIR.glob("*.cedar")} == {"silver_queues_changes.cedar"}


def test_the_rule_that_the_page_about_policies_shows_asks_as_it_says(studio: Studio) -> None:
    page = (Path(__file__).parents[2] / "docs" / "policy.md").read_text("utf-8")
    rule = page.partition("```cedar\n")[2].partition("```")[0]
    policy = studio(rule.replace('"delete_document"', '"remove_document"'))
    decision = policy.decide(call("remove_document", person("sre")))
    assert isinstance(decision, Ask)
    assert "two-of-security-for-lore" in decision.rules
