"""Owns the card: everything that somebody is shown before they decide, and what became of it after; the same for Slack, page and terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import cast

from approvals.model import Approval, Factor, Standing, Verdict, Via, Vote, counted, met
from approvals.people import People
from approvals.shown import Shown, visible
from body_broker.calls import Json
from policies.decision import Requirement

CHANNELS: dict[Via, str] = {"slack": "Slack", "mfa": "the approval page", "local": "the terminal"}
"""What the channels of a rule are called."""
ERROR_MAX = 500
_SOURCE_MAX = 150

_TIME = "%Y-%m-%d %H:%M:%S UTC"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule that asked, and how far it is.

    Attributes:
        name: Its @id.
        has: Yeses that count for it.
        quorum: How many it wants.
        groups: Groups an approver may belong to.
        via: Channels an approver may use.
        own: Whether the asker's own second factor is enough.
        met: Whether it has what it wants.
    """

    name: str
    has: int
    quorum: int
    groups: tuple[str, ...]
    via: tuple[Via, ...]
    own: bool
    met: bool

    @property
    def text(self) -> str:
        """One line."""
        own = "; the asker's own second factor counts too" if self.own else ""
        channels = _either([CHANNELS[via] for via in self.via])
        return f"{self.name}: {self.has} of {self.quorum} from {_either(list(self.groups))}, by {channels}{own}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteLine:
    """A vote as it is shown."""

    name: str
    verdict: Verdict
    via: Via
    factor: Factor | None
    at: datetime
    reason: str | None

    @property
    def text(self) -> str:
        """One line."""
        how = CHANNELS[self.via] + (f", with a {'code' if self.factor == 'totp' else 'passkey'}" if self.factor else "")
        said = "Yes" if self.verdict == "approve" else "No"
        return f"{said}: {self.name}, by {how}, {_time(self.at)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One approval, ready to be shown. Every text of it is inert and complete; nothing of a caller's is in `effect` or `rules`.

    Attributes:
        headline: Verb and target in words.
        requester: Who makes the call.
        on_behalf_of: For whom, the nearest first; empty where it is the requester alone.
        reason: The agent's own words, to be marked so.
        arguments: All of them, as JSON.
        preview: What the call would change.
        rules: What asked, and how far each is.
        effect: What a yes does.
        warnings: What to know before deciding.
        fingerprint: What people compare between channels.
        votes: In the order they came.
        record: Once it is decided: how, by whom, when, and what became of it.
        why: A denial's reason, or why it was cancelled.
        error: What went wrong when it ran.
        link: Its page, where pages are served.
        is_open: Whether it still may be decided.
    """

    id: str
    digest: str
    tool: str
    standing: Standing
    headline: str
    requester: str
    on_behalf_of: tuple[str, ...]
    reason: Shown | None
    arguments: Shown
    preview: Shown | None
    rules: tuple[Rule, ...]
    effect: str
    destructive: bool
    warnings: tuple[str, ...]
    earlier: str | None
    fingerprint: str
    created_at: datetime
    expires_at: datetime
    votes: tuple[VoteLine, ...]
    record: str | None
    why: str | None
    error: str | None
    link: str | None
    is_open: bool

    @classmethod
    def of(cls, approval: Approval, people: People, pages_url: str | None, now: datetime) -> Card:
        """The card of an approval.

        Args:
            approval: With its votes.
            people: Who people are.
            pages_url: Where the hub's pages are; None where there are none.
            now: When it is looked at.
        """
        arguments = _json(approval.values())
        preview = None if approval.preview is None else visible(approval.preview)
        reason = None if approval.reason is None else visible(approval.reason)
        headline = visible(" ".join(approval.headline.split()))
        hidden = sum(each.hidden for each in (arguments, preview, reason, headline) if each)
        return cls(
            id=approval.id,
            digest=approval.digest,
            tool=approval.tool,
            standing=approval.standing,
            headline=headline.text,
            requester=named(approval.chain[-1], people),
            on_behalf_of=tuple(named(each, people) for each in reversed(approval.chain[:-1])),
            reason=reason,
            arguments=arguments,
            preview=preview,
            rules=tuple(_rule(each, approval) for each in approval.requirements),
            effect=_effect(approval),
            destructive=approval.destructive,
            warnings=tuple(_warnings(approval, hidden)),
            earlier=approval.earlier,
            fingerprint=approval.fingerprint,
            created_at=approval.created_at,
            expires_at=approval.expires_at,
            votes=tuple(_vote(vote, people) for vote in approval.votes),
            record=_record(approval, people),
            why=None if approval.why is None else visible(approval.why).text,
            error=_error(approval.error),
            link=None if pages_url is None else f"{pages_url.rstrip('/')}/approve/{approval.id}",
            is_open=approval.standing == "pending" and now < approval.expires_at,
        )

    @property
    def channels(self) -> frozenset[Via]:
        """The channels by which a vote may still count: those of the rules that want more."""
        return frozenset(via for rule in self.rules if not rule.met for via in rule.via)

    def text(self) -> str:
        """The whole card as lines for a terminal: ours first, and whatever others wrote behind bars."""
        lines = ["What is asked:", *Shown(self.headline).lines(), ""]
        lines += [f"{name:<13} {value}" for name, value in self._facts() if value]
        boxes = (
            ("Its reason, in the caller's own words", self.reason),
            ("It would change", self.preview),
            ("Arguments", self.arguments),
        )
        for title, shown in boxes:
            lines += ["", *_box(title, shown)]
        lines += ["", *(f"! {warning}" for warning in self.warnings)]
        for vote in self.votes:
            lines += [vote.text, *_box("Their reason", vote.reason)]
        lines += [self.record] if self.record else []
        return "\n".join([*lines, *_box("Reason", self.why), *_box("It said", self.error)]).rstrip()

    def _facts(self) -> list[tuple[str, str | None]]:
        return [
            ("Asked by", self.requester),
            ("On behalf of", ", for ".join(self.on_behalf_of)),
            ("Tool", self.tool),
            *(("Rule", rule.text) for rule in self.rules),
            ("Effect", self.effect),
            ("Expires", _time(self.expires_at)),
            ("Fingerprint", self.fingerprint),
            ("Approval", self.id),
            ("Page", self.link),
        ]


def _box(title: str, shown: Shown | str | None) -> list[str]:
    if not shown:
        return []
    return [f"{title}:", *(Shown(shown) if isinstance(shown, str) else shown).lines()]


def named(principal: str, people: People) -> str:
    """How a principal is called: the name of approvers.toml, and always the principal itself."""
    person = people.persons.get(principal)
    return f"{person.name} ({principal})" if person and person.name else principal


def _json(values: Json) -> Shown:
    # JSON writes control characters out itself; they are counted all the same.
    shown = visible(json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False))
    written = sum(1 for text in _strings(values) for c in text if c < " " and c not in "\n\t\r")
    return Shown(shown.text, shown.hidden + written)


def _strings(value: Json) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in cast("dict[str, Json]", value).items():
            yield name
            yield from _strings(item)
    elif isinstance(value, list):
        for item in cast("list[Json]", value):
            yield from _strings(item)


def _rule(requirement: Requirement, approval: Approval) -> Rule:
    return Rule(
        name=requirement.rule,
        has=counted(requirement, approval.votes, asker=approval.asker),
        quorum=requirement.quorum,
        groups=requirement.approvers,
        via=cast("tuple[Via, ...]", requirement.via),
        own=requirement.own,
        met=met(requirement, approval.votes, asker=approval.own_asker),
    )


def _effect(approval: Approval) -> str:
    said = "After the last yes it runs once, at once."
    if approval.effect == "none":
        return f"{said} It changes nothing itself."
    if approval.destructive:
        said += " It takes something away, and this hub cannot bring it back."
    if approval.effect == "once":
        return f"{said} If the hub dies in the middle, a person must find out whether it happened."
    return f"{said} If the hub dies in the middle, it is finished without happening twice."


def _warnings(approval: Approval, hidden: int) -> Iterator[str]:
    if hidden:
        yield f"{hidden} hidden, direction-changing or odd blank characters are written out as \\u and their code."
    if approval.tainted:
        by = ", ".join(visible(name).text[:_SOURCE_MAX] for name in approval.tainted_by)
        yield f"The caller had read text from outside{by and f', by {by}'}: this may be somebody else's idea."
    if approval.depth:
        yield f"The call was caused by other calls, {approval.depth} deep."
    if approval.earlier:
        yield f"The very same call was asked for before: {approval.earlier}."


def _vote(vote: Vote, people: People) -> VoteLine:
    return VoteLine(
        name=named(vote.voter, people),
        verdict=vote.verdict,
        via=vote.via,
        factor=vote.factor,
        at=vote.at,
        reason=None if vote.reason is None else visible(vote.reason).text,
    )


def _record(approval: Approval, people: People) -> str | None:
    """How it was decided and what became of it, in one or two sentences; None while it is pending."""
    standing = approval.standing
    if standing == "pending":
        return None
    yes = [named(vote.voter, people) for vote in approval.votes if vote.verdict == "approve"]
    by = named(approval.decided_by, people) if approval.decided_by else "nobody"
    when = _time(approval.decided_at)
    if standing == "denied":
        return f"Denied by {by} at {when}."
    asker = approval.own_asker
    if not all(met(each, approval.votes, asker=asker) for each in approval.requirements):
        told = {
            "expired": "Expired: nobody decided in time. That is not a refusal.",
            "cancelled": f"Cancelled by {by}.",
        }
        return f"{told.get(standing, standing.capitalize() + '.')} {when}"
    return f"Approved by {', '.join(yes) or by} at {when}. {_became(approval)}"


def _became(approval: Approval) -> str:
    ended = _time(approval.ended_at)
    took = _duration(approval.ended_at - approval.decided_at) if approval.ended_at and approval.decided_at else "?"
    told: dict[Standing, str] = {
        "approved": "It runs next.",
        "executing": "It is running.",
        "done": f"Done at {ended}, {took} after the decision.",
        "failed": f"It failed at {ended}, {took} after the decision.",
        "unknown": f"Whether it happened is not known: look, then run `body-broker approvals resolve {approval.id}`.",
        "expired": "But nothing ran it before it expired.",
        "cancelled": f"But it was cancelled at {ended} before it ran.",
    }
    return told.get(approval.standing, "")


def _error(error: Json) -> str | None:
    if not isinstance(error, dict):
        return None
    return visible(str(cast("dict[str, Json]", error).get("message", "It failed."))).text[:ERROR_MAX]


def _time(moment: datetime | None) -> str:
    return "an unknown time" if moment is None else moment.strftime(_TIME)


def _duration(took: timedelta) -> str:
    seconds = took.total_seconds()
    if seconds < 60:  # noqa: PLR2004 - a minute
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


def _either(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}" if names else "nobody"
