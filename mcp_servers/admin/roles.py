"""Owns the roles file: which IAM role each principal's queries assume, checked as a whole before anything is served."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from body_broker.calls import Caller
from body_broker.errors import NotConfigured, StartError
from policies.schema import ROLES, TIERS

SETTING = "BODY_BROKER_AWS_ROLES"
SESSION_S = 900
"""The shortest session that STS gives, and ours unless the file asks for a longer one."""

_SESSION_MAX_S = 3_600  # an assumed role may not chain further than that
_FILE_BYTES_MAX = 256 * 1024
_ARN = re.compile(r"arn:(aws|aws-cn|aws-us-gov):iam::(\d{12}):role/([\w+=,.@/-]{1,576})")
_EXTERNAL_ID = re.compile(r"[\w+=,.@:/-]{2,1224}")
_NAMED = re.compile(r"(?:person|service):[a-z0-9][a-z0-9._-]{0,62}")
_TABLES = ("principals", "roles")
_ENTRY = ("arn", "external_id", "duration_s")


@dataclass(frozen=True, slots=True)
class Grant:
    """The role that one principal's queries assume.

    Attributes:
        principal: Whose.
        arn: The role.
        external_id: What the role's trust policy may ask for.
        duration_s: How long a session lasts.
    """

    principal: str
    arn: str
    external_id: str | None = None
    duration_s: int = SESSION_S

    @property
    def partition(self) -> str:
        """aws, aws-cn or aws-us-gov."""
        return self.arn.split(":")[1]

    @property
    def account(self) -> str:
        """The account that the role is in."""
        return self.arn.split(":")[4]


@dataclass(frozen=True, slots=True)
class _Entry:
    arn: str
    external_id: str | None
    duration_s: int


@dataclass(frozen=True, slots=True)
class Roles:
    """What the file says."""

    principals: Mapping[str, _Entry]
    roles: Mapping[str, _Entry]

    @classmethod
    def load(cls, file: Path) -> Roles:
        """The roles of a file.

        Raises:
            StartError: It is missing, is not TOML, or says something that is not understood; every fault is named at once.
        """
        try:
            with file.open("rb") as source:
                text = source.read(_FILE_BYTES_MAX + 1)
            if len(text) > _FILE_BYTES_MAX:
                raise _wrong(["it is longer than 256 KiB"])
            found = tomllib.loads(text.decode())
        except OSError as error:
            raise _wrong(["it cannot be read"]) from error
        except tomllib.TOMLDecodeError as error:
            raise _wrong([f"it is not TOML ({_place(error)})"]) from error
        except UnicodeDecodeError as error:
            raise _wrong(["it is not UTF-8 text"]) from error
        if faults := list(_faults(found)):
            raise _wrong(faults)
        read = {table: {name: _entry(value) for name, value in found.get(table, {}).items()} for table in _TABLES}
        return cls(read["principals"], read["roles"])

    def grants(self, caller: Caller) -> tuple[Grant, ...]:
        """The roles of a caller's chain, each once, that of who acts last.

        Everybody in the chain needs one, in one account: a query is made with each of them, so that nobody reads through another
        what they could not read themselves.

        Raises:
            NotConfigured: Somebody has none, or has several, or they are of different accounts.
        """
        found = [self._grant(principal, caller) for principal in caller.chain]
        if len({(grant.partition, grant.account) for grant in found}) > 1:
            raise _lacking(
                f"The roles of {' and '.join(caller.chain)} are in different AWS accounts, so no query can be made for both.",
                "Give them roles in one account",
            )
        last = {grant.arn: grant for grant in found}
        ordered = dict.fromkeys(grant.arn for grant in reversed(found))
        return tuple(last[arn] for arn in reversed(ordered))

    def _grant(self, principal: str, caller: Caller) -> Grant:
        if entry := self.principals.get(principal):
            return _granted(principal, entry)
        held = sorted(caller.roles.get(principal, frozenset()))
        entries = {self.roles[role] for role in held if role in self.roles}
        if not entries:
            raise _lacking(
                f"No AWS role is set for {principal}.",
                f'Add "{principal}" under [principals]' + (f", or {' or '.join(held)} under [roles]," if held else ""),
            )
        if len(entries) > 1:
            raise _lacking(
                f"{principal} has several roles here ({', '.join(held)}), and they name different AWS roles.",
                f'Say which one under [principals] as "{principal}"',
            )
        return _granted(principal, entries.pop())


def _granted(principal: str, entry: _Entry) -> Grant:
    return Grant(principal, entry.arn, entry.external_id, entry.duration_s)


def _entry(value: Any) -> _Entry:  # as TOML gives it, and checked
    table: dict[str, Any] = {"arn": value} if isinstance(value, str) else value
    return _Entry(table["arn"], table.get("external_id"), table.get("duration_s", SESSION_S))


def _faults(found: Mapping[str, Any]) -> Iterator[str]:
    for name in found:
        if name not in _TABLES:
            yield f"{name} is neither [principals] nor [roles]"
    if not any(found.get(table) for table in _TABLES):
        yield "it names no role"
    for table in _TABLES:
        entries = found.get(table, {})
        if not isinstance(entries, dict):
            yield f"{table} is no table"
            continue
        for name, value in cast("dict[str, Any]", entries).items():
            where = f'[{table}] "{name[:80]}"'
            if not _is_known(table, name):
                yield f"{where} is no {'principal' if table == 'principals' else 'role of this hub'}"
            yield from _entry_faults(where, value)


def _is_known(table: str, name: str) -> bool:
    if table == "roles":
        return name in ROLES
    return name in {f"tier:{tier}" for tier in TIERS} or _NAMED.fullmatch(name) is not None


def _entry_faults(where: str, value: Any) -> Iterator[str]:  # as TOML gives it
    table: dict[str, Any] = {"arn": value} if isinstance(value, str) else value
    if not isinstance(value, str | dict):
        yield f"{where} is neither an ARN nor a table"
        return
    for key in table:
        if key not in _ENTRY:
            yield f"{where} has the unknown key {key[:40]}"
    arn, external_id, duration_s = table.get("arn"), table.get("external_id"), table.get("duration_s", SESSION_S)
    if not isinstance(arn, str) or not _ARN.fullmatch(arn):
        yield f"{where} has no ARN of an IAM role, such as arn:aws:iam::123456789012:role/body-broker-reads"
    if external_id is not None and not (isinstance(external_id, str) and _EXTERNAL_ID.fullmatch(external_id)):
        yield f"{where} has an external_id that STS would not take"
    if type(duration_s) is not int or not SESSION_S <= duration_s <= _SESSION_MAX_S:
        yield f"{where} has a duration_s that is not from {SESSION_S} to {_SESSION_MAX_S}"


def _place(error: tomllib.TOMLDecodeError) -> str:
    """`at line 3, column 4`: of its message only that, which holds nothing of the file."""
    found = re.search(r"at (line \d+, column \d+|end of document)", str(error))
    return found[0] if found else "somewhere"


def _wrong(faults: list[str]) -> StartError:
    return StartError(
        f"The file of {SETTING} cannot be used: {'; '.join(faults)}.",
        next_step=f"Correct it as docs/aws.md shows, or unset {SETTING}.",
        details={"setting": SETTING, "problems": faults[:50]},
    )


def _lacking(what: str, step: str) -> NotConfigured:
    return NotConfigured(
        what,
        next_step=f"Ask the people who run this hub: {step} in the file of {SETTING} (docs/aws.md), then restart it.",
        details={"setting": SETTING},
    )
