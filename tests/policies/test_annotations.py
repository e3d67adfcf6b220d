"""What a gate's annotations ask of people is what was decided, and one that promises more than its gate opens to does not load."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cedarpy
import pytest

from body_broker.errors import PolicyError
from policies.catalogue import Catalogue
from policies.decision import Requirement
from policies.engine import Policy
from policies.probes import with_probes
from tests.policies.rooms import WIDE

CATALOGUE = with_probes(Catalogue(WIDE))
RULES = {name: rule for name, rule in Policy.load(CATALOGUE).rules.items() if rule.requirement}
CHANNELS = {"slack", "mfa", "local"}
GROUPS = {"designer", "engineer", "sre", "security", "admin"}

# Written down apart from the policies, from docs/approvals.md: channels, groups, yeses, seconds, and whether the asker's own factor is enough.
ANYBODY, SLACK_OR_PAGE = ("slack", "mfa", "local"), ("slack", "mfa")
WANTED = {
    "people-queue-with-approval": (ANYBODY, ("sre", "admin"), 1, 900, True),
    "writes-need-approval": (ANYBODY, ("sre", "admin"), 1, 900, True),
    "admin-changes-need-approval": (ANYBODY, ("sre", "admin"), 1, 600, True),
    "scans-by-tiers-need-approval": (SLACK_OR_PAGE, ("security",), 1, 3600, False),
    "destruction-needs-approval": (ANYBODY, ("sre", "admin"), 1, 600, True),
    "destruction-by-agents-needs-two": (SLACK_OR_PAGE, ("sre", "admin"), 2, 600, False),
    "external-by-bronze-needs-approval": (SLACK_OR_PAGE, ("security", "admin"), 1, 900, False),
    "tainted-needs-approval": (ANYBODY, ("security", "sre", "admin"), 1, 900, True),
}


def asked(requirement: Requirement | None) -> tuple[tuple[str, ...], tuple[str, ...], int, int, bool]:
    assert requirement is not None
    return requirement.via, requirement.approvers, requirement.quorum, requirement.ttl_s, requirement.own


def promising(annotations: dict[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Every annotation that promises an approver a gate that does not open to them."""
    for channel in CHANNELS - set(annotations["approval"].split(",")):
        yield f"also by {channel}", annotations | {"approval": f"{annotations['approval']},{channel}"}
    for group in GROUPS - set(annotations["approvers"].split(",")):
        yield f"also from {group}", annotations | {"approvers": f"{annotations['approvers']},{group}"}
    if annotations.get("quorum", "1") != "1":
        yield "one yes is enough", annotations | {"quorum": "1"}
    if "mfa" in annotations["approval"] and "quorum" in annotations:
        yield "the asker's own factor is enough", {key: value for key, value in annotations.items() if key != "quorum"}


def mistyped(annotations: dict[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Every other way in which one could be another."""
    for name in ("approval", "approvers", "quorum", "ttl"):
        if name in annotations:
            yield f"without {name}", {key: value for key, value in annotations.items() if key != name}
            yield f"an empty {name}", annotations | {name: ""}
    for name in ("approval", "approvers"):
        given = annotations[name].split(",")
        for one in given if len(given) > 1 else ():
            yield f"not {one}", annotations | {name: ",".join(each for each in given if each != one)}
        yield f"a misspelt {name}", annotations | {name: f"{annotations[name]}x"}
    yield "another quorum", annotations | {"quorum": "3"}
    yield "no quorum", annotations | {"quorum": "0"}
    yield "a longer time", annotations | {"ttl": "2h"}
    yield "no time", annotations | {"ttl": "0m"}
    yield (
        "a misspelt annotation",
        {"approver" if key == "approvers" else key: value for key, value in annotations.items()},
    )


def loaded(name: str, annotations: dict[str, str], folder: Path) -> Requirement | None:
    """What a rule asks for with these annotations, as a studio's own beside ours; under another name, as it must be."""
    body = RULES[name].body | {"annotations": annotations | {"id": "of-a-studio"}}
    text = cedarpy.policies_from_json_str(
        json.dumps({"staticPolicies": {"of-a-studio": body}, "templates": {}, "templateLinks": []})
    )
    (folder / "studio.cedar").write_text(text, encoding="utf-8")
    return Policy.load(CATALOGUE, folder).rules["of-a-studio"].requirement


def test_what_each_gate_asks_of_people_is_what_was_decided() -> None:
    assert {name: asked(rule.requirement) for name, rule in RULES.items()} == WANTED


@pytest.mark.parametrize("name", RULES)
def test_a_promise_that_its_gate_does_not_keep_does_not_load(name: str, tmp_path: Path) -> None:
    annotations = RULES[name].body["annotations"]
    assert asked(loaded(name, annotations, tmp_path)) == WANTED[name], "as it is it loads"
    for what, changed in promising(annotations):
        with pytest.raises(PolicyError):
            pytest.fail(f"{name}, {what}: it asks for {loaded(name, changed, tmp_path)}")


@pytest.mark.parametrize("name", RULES)
def test_any_other_change_of_an_annotation_does_not_load_or_asks_for_something_else(name: str, tmp_path: Path) -> None:
    annotations = RULES[name].body["annotations"]
    for what, changed in mistyped(annotations):
        try:
            found = loaded(name, changed, tmp_path)
        except PolicyError:
            continue
        assert found is not None, f"{name}, {what}: it asks nobody"
        if what == "without ttl" and found.ttl_s == WANTED[name][3]:
            continue  # the default is what it says
        assert asked(replace(found, rule=name)) != WANTED[name], f"{name}, {what}: nobody would notice"
