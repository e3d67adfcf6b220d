"""Owns approvers.toml: who may say yes, in which groups, and by which Slack account or OIDC subject they are known."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from body_broker.errors import SettingsError
from body_broker.settings import Settings

_NAME = re.compile(r"person:[a-z0-9][a-z0-9._-]{0,62}")
Group = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,30}$")]
SlackId = Annotated[str, Field(pattern=r"^[UW][A-Z0-9]{5,20}$")]
ChannelId = Annotated[str, Field(pattern=r"^[CG][A-Z0-9]{5,20}$")]


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Person(_Closed):
    """One person of the file.

    Attributes:
        groups: The approver groups they belong to; none makes them known without a say.
        slack: Their member id in Slack, such as U012AB3CD.
        oidc: Their subject at the OIDC issuer.
        name: How they are called on cards; else their principal's name.
    """

    groups: frozenset[Group] = frozenset()
    slack: SlackId | None = None
    oidc: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    name: Annotated[str, Field(min_length=1, max_length=80)] | None = None


class _Slack(_Closed):
    channels: dict[Group, ChannelId] = Field(default_factory=dict)
    mentions: dict[Group, Annotated[str, Field(pattern=r"^S[A-Z0-9]{5,20}$")]] = Field(default_factory=dict)


class _File(_Closed):
    people: dict[str, Person] = Field(default_factory=dict)
    slack: _Slack = Field(default_factory=_Slack)


@dataclass(frozen=True, slots=True)
class People:
    """Everybody of the file.

    Attributes:
        persons: By principal, `person:anna`.
        channels: The Slack channel in which a group is asked, where it is another than the common one.
        mentions: The Slack user group that is mentioned when a group is asked.
    """

    persons: Mapping[str, Person]
    channels: Mapping[str, str]
    mentions: Mapping[str, str]

    def groups_of(self, person: str) -> frozenset[str]:
        """The groups of a principal; none where the file does not name it."""
        found = self.persons.get(person)
        return found.groups if found else frozenset()

    def by_slack(self, member: str) -> str | None:
        """The principal behind a Slack member id."""
        return next((principal for principal, person in self.persons.items() if person.slack == member), None)

    def by_oidc(self, subject: str) -> str | None:
        """The principal behind an OIDC subject."""
        return next((principal for principal, person in self.persons.items() if person.oidc == subject), None)

    def in_groups(self, groups: frozenset[str]) -> frozenset[str]:
        """Whoever belongs to one of these groups."""
        return frozenset(principal for principal, person in self.persons.items() if person.groups & groups)

    def name_of(self, person: str) -> str:
        """How somebody is called on cards."""
        found = self.persons.get(person)
        return (found.name if found else None) or person.partition(":")[2] or person


NOBODY = People({}, {}, {})
PEOPLE_FILE = "approvers.toml"


def people_of(settings: Settings) -> People:
    """Everybody of the file that the settings name, else of approvers.toml in the data dir, where there is one; blocking.

    Raises:
        SettingsError: As `load_people`.
    """
    file = settings.approvers or settings.data_dir / PEOPLE_FILE
    return load_people(file) if settings.approvers or file.exists() else NOBODY


def load_people(file: Path) -> People:
    """Everybody of the file; blocking, so call it in a thread.

    Raises:
        SettingsError: The file cannot be read, or something in it does not fit; it says what.
    """
    try:
        found = _File.model_validate(tomllib.loads(file.read_text("utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise _fault(file, "it cannot be read as TOML") from error
    except ValidationError as error:
        places = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False)]
        raise _fault(file, "; ".join(places[:5])) from error
    persons = {
        name if name.startswith("person:") else f"person:{name}": person for name, person in found.people.items()
    }
    if wrong := [name for name in persons if not _NAME.fullmatch(name)]:
        raise _fault(file, f"{len(wrong)} of its people are not spelled like person:anna")
    for kind in ("slack", "oidc"):
        ids = [getattr(person, kind) for person in persons.values() if getattr(person, kind) is not None]
        if len(ids) != len(set(ids)):
            raise _fault(file, f"two people share one {kind} id, so nobody could tell them apart")
    if len(persons) != len(found.people):
        raise _fault(file, "one person stands in it twice")
    return People(persons, found.slack.channels, found.slack.mentions)


def _fault(file: Path, what: str) -> SettingsError:
    return SettingsError(
        f"The file of approvers ({file.name}) does not fit: {what}.", next_step="docs/approvals.md shows its form."
    )
