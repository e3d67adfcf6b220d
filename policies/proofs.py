"""Owns proofs about the policies: what holds for every principal and every argument, by partial evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict, Unpack

import cedarpy

from body_broker.calls import Json
from policies.cedar import anything, approval_json
from policies.decision import FACTS, Approval, Identity
from policies.engine import Policy


class Known(TypedDict, total=False):
    """What is known of a call; everything else may be anything."""

    identity: Identity
    approval: Approval
    arguments: Mapping[str, Json]
    tainted: bool
    depth: int
    history: frozenset[str]
    facts: frozenset[str]


def proves_denied(policy: Policy, operation: str, **known: Unpack[Known]) -> bool:
    """Whether no call of this operation is allowed, whatever is not known may be.

    Args:
        policy: The policies.
        operation: An operation of their catalogue.
        known: What is known: nothing stands for every principal, every argument and every circumstance, without approval.
            `arguments` are the visible ones by their names in policies (`change.op`), and then there are no others.
    """
    identity = known.get("identity")
    context: dict[str, Json] = {}
    if "tainted" in known:
        context["tainted"] = known["tainted"]
    if "depth" in known:
        context["depth"] = known["depth"]
    if "arguments" in known:
        context["arguments"] = dict(known["arguments"])
    if "history" in known:
        context["history"] = sorted(known["history"])
    if "facts" in known:
        context["facts"] = {fact: fact in known["facts"] for fact in FACTS}
    if "approval" in known:
        alone = identity is not None and identity.is_person
        context["approval"] = approval_json(known["approval"], alone=alone)
    return policy.foresee(operation, identity, anything(**context)) == cedarpy.Decision.Deny
