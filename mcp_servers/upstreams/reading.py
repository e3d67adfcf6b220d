"""Owns reading upstreams.toml: which servers of others are joined, how, and what the studio says of their operations; every problem named."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Generator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from body_broker.calls import Effect
from body_broker.errors import SettingsError
from body_broker.settings import Settings
from body_broker.text import clean, is_clean
from mcp_servers.upstreams.model import NAME, Auth, Classified, Kind, Upstream
from policies.catalogue import GROUPS, MODIFIERS

FILE = "upstreams.toml"
READS = frozenset({"own", "state_read", "retrieval", "config_read", "security_read", "admin_read"})
"""The groups of which an operation must have no effect."""
_PAGE = "docs/upstreams.md has its form."
_SHOWN_MAX = 20
_PLACE = re.compile(r" \(at line \d+, column \d+\)")
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_KINDS: Mapping[str, tuple[Kind, ...]] = {
    "tools": ("tool",),
    "prompts": ("prompt",),
    "resources": ("resource", "template"),
}
# A name that says secret, or a value of a form that keys have.
_SECRET_NAME = re.compile(r"(?i)(password|passwd|secret|token|credential|api_?key|private_?key|access_?key)")
_SECRET_VALUE = re.compile(
    r"^(sk-|gh[pousr]_|github_pat_|xox[abpr]-|glpat-|AKIA|ASIA|AIza|eyJ[A-Za-z0-9_-]+\.)|-----BEGIN|://[^/\s:@]+:[^/\s@]+@"
)

_Words = Annotated[str, Field(min_length=1, max_length=4_096)]
_Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$")]
_Seconds = Annotated[float, Field(gt=0, le=3_600)]
_Wait = Annotated[float, Field(ge=0, le=3_600)]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class _Classified(_Closed):
    group: str | None = None
    modifiers: frozenset[str] = frozenset()
    effect: Effect | None = None

    @field_validator("group")
    @classmethod
    def _known_group(cls, group: str | None) -> str | None:
        if group is not None and group not in GROUPS:
            raise ValueError(f"must be one of {', '.join(GROUPS)}")
        return group

    @field_validator("modifiers")
    @classmethod
    def _known_modifiers(cls, modifiers: frozenset[str]) -> frozenset[str]:
        if not modifiers <= set(MODIFIERS):
            raise ValueError(f"must be among {', '.join(MODIFIERS)}")
        return modifiers

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.group in READS and self.effect not in {None, "none"}:
            raise ValueError(f'the group {self.group} only reads, so its effect is "none"')
        if self.effect == "none" and self.group not in READS:
            raise ValueError('effect "none" goes with a group that reads')
        return self

    def found(self) -> Classified:
        """As the rows are told; what reads has no effect, of anything else nobody knows whether it may be repeated."""
        effect = self.effect or ("none" if self.group in READS else "once")
        return Classified(group=self.group, modifiers=self.modifiers, effect=effect)


class _Section(_Closed):
    command: Annotated[tuple[_Words, ...], Field(max_length=100)] = ()
    url: Annotated[str, Field(max_length=2_000)] | None = None
    env: Mapping[_Variable, str] = {}
    secret_env: tuple[_Variable, ...] = ()
    auth: Literal["none", "token", "oauth"] = "none"
    timeout_s: _Seconds = 30.0
    concurrency: Annotated[int, Field(ge=1, le=100)] = 8
    recheck_s: _Wait = 5.0
    watch_s: Annotated[float, Field(ge=1, le=86_400)] = 60.0
    folder: _Words | None = None
    tools: Mapping[_Words, _Classified] = {}
    prompts: Mapping[_Words, _Classified] = {}
    resources: Mapping[_Words, _Classified] = {}

    @field_validator("url")
    @classmethod
    def _safe_url(cls, url: str | None) -> str | None:
        if url is not None and (problem := url_problem(url)):
            raise ValueError(problem)
        return url

    @field_validator("env")
    @classmethod
    def _no_secrets(cls, env: Mapping[str, str]) -> Mapping[str, str]:
        if found := sorted(name for name, value in env.items() if looks_secret(name, value)):
            raise ValueError(
                f"{', '.join(found)} looks like a secret: name it in secret_env, and give its value "
                "with `body-broker upstream token`"
            )
        if any("\0" in value for value in env.values()):
            raise ValueError("a value holds a NUL character")
        return env

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if bool(self.command) == (self.url is not None):
            raise ValueError("say either command or url")
        if self.url is not None and (self.env or self.secret_env or self.folder is not None):
            raise ValueError("env, secret_env and folder go with a command")
        if self.command and self.auth != "none":
            raise ValueError("auth goes with a url; a command is given its secrets by secret_env")
        if both := sorted(set(self.secret_env).intersection(self.env)):
            raise ValueError(f"{', '.join(both)} stands in env and in secret_env")
        return self


def read_upstreams(file: Path, *, taken: Collection[str] = ()) -> tuple[Upstream, ...]:
    """The servers of others that a file joins, in the order of their names; blocking.

    Args:
        file: An upstreams.toml.
        taken: The names of our rooms and of their operations: none of theirs may become one of these.

    Raises:
        SettingsError: It is no TOML or does not fit; every problem is named, no value is repeated.
    """
    tables = _tables(file)
    problems = list(_named_wrong(tables, frozenset(taken)))
    found: list[Upstream] = []
    for name, table in sorted(tables.items()):
        try:
            section = _Section.model_validate(table)
        except ValidationError as error:
            problems += [_problem(name, e) for e in error.errors(include_input=False, include_url=False)]
        else:
            found.append(_upstream(name, section))
    if problems:
        raise _unfit(problems)
    return tuple(found)


def file_of(settings: Settings) -> Path:
    """Where the servers of others are joined: the file that the settings name, else upstreams.toml in the data dir."""
    return settings.upstreams or settings.data_dir / FILE


def upstreams_of(settings: Settings, *, taken: Collection[str] = ()) -> tuple[Upstream, ...]:
    """The servers that the settings' file joins; none where no file is named and none is in the data dir; blocking.

    Raises:
        SettingsError: As `read_upstreams`.
    """
    file = file_of(settings)
    return read_upstreams(file, taken=taken) if settings.upstreams or file.exists() else ()


def url_problem(url: str) -> str | None:
    """Why a server cannot be joined under this URL; None where it can."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return "is no URL"
    if parts.scheme not in {"http", "https"} or not parts.hostname or not is_clean(url) or re.search(r"\s", url):
        return "must be an http or https URL"
    if parts.username is not None or parts.password is not None:
        return "must hold no user and no password: use auth"
    if parts.fragment:
        return "must have no fragment"
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        return "must be https: plain http is for this machine alone"
    return None


def looks_secret(name: str, value: str) -> bool:
    """Whether a variable of the environment looks like a secret, which does not belong in a file."""
    return bool(value) and (_SECRET_NAME.search(name) is not None or _SECRET_VALUE.search(value) is not None)


def _named_wrong(tables: Mapping[str, Any], taken: frozenset[str]) -> Generator[str]:
    for name in tables:
        shown = clean(name, limit=64)
        if not re.fullmatch(NAME, name):
            yield f"{shown}: a name is small letters, digits and _, begins with a letter and has at most 31 characters"
        elif name in taken or any(each.startswith(f"{name}_") for each in taken):
            yield f"{shown}: the hub has names of its own that begin so"
        elif longer := sorted(each for each in tables if each.startswith(f"{name}_")):
            yield f"{shown}: {clean(longer[0], limit=64)} begins with it, so their tools could have the same names"


def _upstream(name: str, section: _Section) -> Upstream:
    given = {"tools": section.tools, "prompts": section.prompts, "resources": section.resources}
    auth: Auth = section.auth
    return Upstream(
        name=name,
        command=section.command,
        folder=section.folder,
        env=dict(section.env),
        secret_env=section.secret_env,
        url=section.url,
        auth=auth,
        timeout_s=section.timeout_s,
        concurrency=section.concurrency,
        recheck_s=section.recheck_s,
        watch_s=section.watch_s,
        operations={
            (kind, each): said.found()
            for table, kinds in _KINDS.items()
            for each, said in given[table].items()
            for kind in kinds
        },
    )


def _tables(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except tomllib.TOMLDecodeError as error:
        place = _PLACE.search(str(error))  # its text may repeat what stands there
        raise SettingsError(f"{FILE} is not TOML{place[0] if place else ''}.", next_step=_PAGE) from error
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{FILE} cannot be read as text.", next_step="Check the path in BODY_BROKER_UPSTREAMS, and who may read it."
        ) from error


def _problem(section: str, found: Any) -> str:  # pydantic's ErrorDetails
    parts = [clean(str(part), limit=64) for part in (section, *found["loc"]) if part != "[key]"]
    said = "unknown" if found["type"] == "extra_forbidden" else str(found["msg"]).removeprefix("Value error, ")
    return f"{'.'.join(parts)}: {said}"


def _unfit(problems: list[str]) -> SettingsError:
    once = list(dict.fromkeys(problems))
    more = f"; and {len(once) - _SHOWN_MAX} more" if len(once) > _SHOWN_MAX else ""
    return SettingsError(
        f"{FILE} does not fit: {'; '.join(once[:_SHOWN_MAX])}{more}.",
        next_step=_PAGE,
        details={"setting": "BODY_BROKER_UPSTREAMS", "problems": list[str](once)},
    )
