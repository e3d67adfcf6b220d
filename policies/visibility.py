"""Owns what a kind of identity sees: by partial evaluation, every operation that some call of theirs could get through."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product

import cedarpy

from body_broker.calls import Json
from policies.arguments import Attribute
from policies.catalogue import Catalogue, Entry
from policies.cedar import Principal, RuleSet, anything, approval_json, unknown
from policies.decision import Approval

# Optional arguments that policies read, of one operation; with more of them it is listed wherever it might be callable.
_OPTIONAL_MAX = 6


class Visibility:
    """What each principal sees, worked out on first sight and kept.

    Args:
        rules: The rules of each operation.
        catalogue: The operations.
        reads: The attributes of each operation that rules read.
        best: An approval that meets every requirement there is: with it a call gets as far as people can let it.
    """

    def __init__(
        self,
        rules: Mapping[str, RuleSet],
        catalogue: Catalogue,
        reads: Mapping[str, tuple[Attribute, ...]],
        best: Approval,
    ) -> None:
        self._rules = rules
        self._catalogue = catalogue
        self._reads = reads
        self._best = approval_json(best, alone=False)
        self._seen: dict[Principal, frozenset[str]] = {}

    def of(self, principal: Principal | None) -> frozenset[str]:
        """The operations this principal sees; none for one that the schema does not know."""
        if principal is None:
            return frozenset()
        if principal not in self._seen:
            entries = self._catalogue.entries.values()
            self._seen[principal] = frozenset(entry.name for entry in entries if self._possible(principal, entry))
        return self._seen[principal]

    def _possible(self, principal: Principal, entry: Entry) -> bool:
        rules = self._rules[entry.name]
        contexts = (anything(arguments=given, approval=self._best) for given in _shapes(self._reads[entry.name]))
        return any(rules.foresee(principal, entry, context) != cedarpy.Decision.Deny for context in contexts)


def _shapes(attributes: tuple[Attribute, ...]) -> Iterator[Json]:
    """Arguments of unknown values: once for each way the optional ones may be there or not."""
    optional = [attribute.name for attribute in attributes if not attribute.required]
    if len(optional) > _OPTIONAL_MAX:
        yield unknown("arguments")
        return
    for present in product((True, False), repeat=len(optional)):
        absent = {name for name, there in zip(optional, present, strict=True) if not there}
        yield {attribute.name: unknown(attribute.name) for attribute in attributes if attribute.name not in absent}
