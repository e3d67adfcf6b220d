"""Owns what a row of the catalogue is: which AWS operations answer it, how an identifier goes into them, what of the answer is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Literal

from body_broker.calls import Json
from body_broker.errors import BadInput

Checked = Literal["runs", "shape-checked"]
"""How a row was tested: against moto's AWS with its permissions enforced, or its request and answer against botocore's shapes alone."""

_MONTHS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation of AWS, as fixed as this file: nothing that a caller says ever names one.

    Attributes:
        method: boto3's name of it.
        action: The IAM action it needs.
        items: JMESPath of the things in its answer.
        params: What it is always called with.
        token: The parameter and the member of the answer that page it; None where it answers in one.
        size: The parameter that says how many to answer with, its least and its greatest value.
    """

    method: str
    action: str
    items: str
    params: Mapping[str, Json] = field(default_factory=dict[str, Json])
    token: tuple[str, str] | None = None
    size: tuple[str, int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail:
    """An operation that describes what a first one only names.

    Attributes:
        operation: Its `items` are the things described.
        param: Takes the names.
        at_once: How many names it takes; 0 where it takes one as text.
    """

    operation: Operation
    param: str
    at_once: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one query will ask.

    Attributes:
        operation: Asked first; None where the names are known and only described.
        params: Beside what the operation is always called with.
        single: The parameters name one thing: nothing is paged, and nothing found is an error.
        exact: Only the thing that is called so; nothing found is an error.
        names: What is described without being listed first.
        around: Parameters of the description beside the names.
    """

    operation: Operation | None
    params: Mapping[str, Json] = field(default_factory=dict[str, Json])
    single: bool = False
    exact: str | None = None
    names: tuple[str, ...] = ()
    around: Mapping[str, Json] = field(default_factory=dict[str, Json])


Find = Callable[["Row", str | None, date], Plan]
"""(row, identifier, today) -> what is asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One kind of thing that can be queried.

    Attributes:
        service: AWS' name of the service, as boto3 has it.
        resource: Ours of the kind of thing.
        about: What one is, in a few words.
        identifier: What an identifier is here.
        listing: Lists them.
        find: Turns an identifier into what is asked.
        fields: What is shown: our name and the JMESPath of its value; `id` is what an identifier finds. All else is left out.
        checked: How it was tested.
        detail: Describes what the listing only names.
        one: Reads a single one, where the listing cannot.
        tags: JMESPath of its tags.
        withheld: What AWS answers besides and nobody is shown, where that may hold secrets.
        everywhere: It knows no regions.
        kept_s: How long an answer is kept and given again; 0 where each call asks AWS.
        costs: What AWS charges for a call; nothing where empty.
    """

    service: str
    resource: str
    about: str
    identifier: str
    listing: Operation
    find: Find
    fields: Mapping[str, str]
    checked: Checked = "runs"
    detail: Detail | None = None
    one: Operation | None = None
    tags: str = ""
    withheld: str = ""
    everywhere: bool = False
    kept_s: int = 0
    costs: str = ""

    @property
    def name(self) -> str:
        """As people write it: `ec2 instances`."""
        return f"{self.service} {self.resource}"

    def operations(self) -> tuple[Operation, ...]:
        """Every operation it may call."""
        found = (self.listing, self.one, self.detail and self.detail.operation)
        return tuple(operation for operation in found if operation is not None)

    def plan(self, identifier: str | None, today: date) -> Plan:
        """What a query asks.

        Raises:
            BadInput: The identifier cannot be one of this kind.
        """
        return self.find(self, identifier, today)


def named(param: str) -> Find:
    """The listing takes the name of one."""
    return lambda row, name, _today: _listed(row, name, lambda one: {param: one})


def among(param: str) -> Find:
    """The listing takes a list of names."""
    return lambda row, name, _today: _listed(row, name, lambda one: {param: [one]})


def looked_up(key: str) -> Find:
    """CloudTrail's way: one attribute that all events must have; still many."""

    def find(row: Row, name: str | None, _today: date) -> Plan:
        sought = [{"AttributeKey": key, "AttributeValue": name}]
        return Plan(operation=row.listing, params={} if name is None else {"LookupAttributes": sought})

    return find


def matching(param: str) -> Find:
    """The listing takes a prefix; the one that is called exactly so is shown."""
    return lambda row, name, _today: Plan(
        operation=row.listing, params={} if name is None else {param: name}, exact=name
    )


def read_by(param: str) -> Find:
    """Another operation reads one."""

    def find(row: Row, name: str | None, _today: date) -> Plan:
        if name is None:
            return Plan(operation=row.listing)
        return Plan(operation=row.one, params={param: name}, single=True)

    return find


def described(row: Row, name: str | None, _today: date) -> Plan:
    """The description takes the name at once."""
    return Plan(operation=row.listing) if name is None else Plan(operation=None, names=(name,))


def in_cluster(row: Row, name: str | None, _today: date) -> Plan:
    """`CLUSTER` or `CLUSTER/ONE`; without it the cluster that AWS calls `default`."""
    cluster, _, one = (name or "default").partition("/")
    around = {"cluster": cluster}
    if one:
        return Plan(operation=None, names=(one,), around=around)
    return Plan(operation=row.listing, params=around, around=around)


def in_month(row: Row, name: str | None, today: date) -> Plan:
    """`YYYY-MM`; without it the last month and this one so far."""
    this = today.replace(day=1)
    if name is None:
        start, end = (this - timedelta(days=1)).replace(day=1), today + timedelta(days=1)
    else:
        start = _month(name, this)
        end = min((start + timedelta(days=31)).replace(day=1), today + timedelta(days=1))
    return Plan(operation=row.listing, params={"TimePeriod": {"Start": start.isoformat(), "End": end.isoformat()}})


def _month(name: str, this: date) -> date:
    try:
        start = date.fromisoformat(f"{name}-01")
    except ValueError:
        start = date.min
    age = (this.year - start.year) * _MONTHS + this.month - start.month
    if not 0 <= age <= _MONTHS:
        raise BadInput(
            "The identifier of costs is a month of the last twelve, or this one.",
            next_step=f"Write it as {this:%Y-%m}, or leave it out for the last month and this.",
            details={"problems": ["identifier: not a month of the last twelve"]},
        )
    return start


def _listed(row: Row, name: str | None, params: Callable[[str], Mapping[str, Json]]) -> Plan:
    if name is None:
        return Plan(operation=row.listing)
    return Plan(operation=row.listing, params=params(name), single=True)
