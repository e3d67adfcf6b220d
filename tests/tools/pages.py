"""Owns the text of the generated pages: what the code says of its settings, errors, tools and commands, as Markdown."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import annotated_types
import click
import yaml
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from body_broker.calls import Caller, Operation, Resource, Room
from body_broker.errors import BodyBrokerError, StartError
from body_broker.settings import PREFIX, Settings, load_settings
from body_broker.world.files.model import schema as schema_of_world_files
from mcp_servers.cybersecurity.semgrep import rule_files
from mcp_servers.hub.cli import body_broker as command_line
from mcp_servers.hub.inferring import given_by
from mcp_servers.hub.listing import Listing, Listings
from mcp_servers.hub.rooms import ROOMS
from mcp_servers.hub.runtime import configured, load_policy, profiled
from policies.catalogue import Catalogue
from policies.matrix import matrix_markdown, modifiers_markdown
from policies.schema import ROLES, TIERS, emit
from tiers.reading import read_catalogue

_CHARACTERS_A_TOKEN = 4  # of JSON and English, roughly; no tokenizer is shipped


def table(head: tuple[str, ...], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; a bar in a cell is escaped."""
    lines = [
        head,
        tuple("---" for _ in head),
        *(tuple(c.replace("|", "\\|").replace("\n", " ") for c in row) for row in rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def settings_page() -> str:
    """docs/settings.md."""
    rows = (
        (f"`{PREFIX}{name.upper()}`", f"`{name}`", _kind_of_setting(field), _default(field), field.description or "")
        for name, field in Settings.model_fields.items()
    )
    return (
        "# Settings\n\n"
        "A setting comes from the command line, else from its environment variable, else from `body-broker.toml` in the\n"
        "working directory under its plain name, else it has the default. A name that is not in this table is an error.\n"
        "`BODY_BROKER_TOKEN` is no setting: it is the credential of a stdio client.\n\n"
        + table(("Variable", "In body-broker.toml", "Value", "Default", "What it is"), rows)
    )


def _kind_of_setting(field: FieldInfo) -> str:
    options = [t for t in _alternatives(field.annotation) if t is not types.NoneType]
    bounds = [_bound(item) for item in field.metadata]
    return ", ".join([" or ".join(_kind_name(option) for option in options), *filter(None, bounds)])


def _alternatives(annotation: Any) -> tuple[Any, ...]:  # a type or a union of types
    return (
        typing.get_args(annotation)
        if typing.get_origin(annotation) in {types.UnionType, typing.Union}
        else (annotation,)
    )


def _kind_name(kind: Any) -> str:  # a type
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(f"`{value}`" for value in typing.get_args(kind))
    names = {
        Path: "path",
        SecretStr: "secret",
        str: "text",
        bool: "`true` or `false`",
        int: "whole number",
        float: "number",
        tuple[str, ...]: "texts, with commas between",
    }
    return names[kind]


def _bound(item: object) -> str:
    match item:
        case annotated_types.Ge(ge=least):
            return f"at least {least}"
        case annotated_types.Gt(gt=below):
            return f"above {below}"
        case annotated_types.Le(le=most):
            return f"at most {most}"
        case annotated_types.MinLen(min_length=length):
            return f"at least {length} characters"
        case _:
            return ""


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is None or value == ():
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def errors_page() -> str:
    """docs/errors.md."""
    every = list(_family(BodyBrokerError))
    wire = [e for e in every if not issubclass(e, StartError) and e is not BodyBrokerError]
    start = [e for e in every if issubclass(e, StartError)]
    return (
        "# Errors\n\n"
        "Every refusal and failure has a code of this table, a message, whether the same call may succeed later, and what to\n"
        "do next. A tool call answers with an MCP result that has `isError` and the facts under\n"
        "`structuredContent.error`; everything else answers with a JSON-RPC error that has them in `data`; a request that is\n"
        "turned away before MCP gets the HTTP status and the same JSON. `retry_after_s` says how long to wait where that is\n"
        "known. The text of an exception that is not ours never leaves the hub: it is `internal`, and the log has the cause.\n\n"
        + table(
            ("Code", "When", "Retryable", "HTTP", "What to do next"),
            (
                (f"`{e.code}`", _first_line(e), "yes" if e.retryable else "no", str(e.http_status), e.advice)
                for e in wire
            ),
        )
        + "\nThese stop a command or a process at its start and are never sent to a client; the message names what to do.\n\n"
        + table(("Code", "When"), ((f"`{e.code}`", _first_line(e)) for e in start))
    )


def _family(base: type[BodyBrokerError]) -> Iterator[type[BodyBrokerError]]:
    # Those of body_broker/errors.py alone: what tests define in the same process is not documentation.
    if base.__module__ == BodyBrokerError.__module__:
        yield base
        for child in base.__subclasses__():
            yield from _family(child)


def _first_line(documented: object) -> str:
    return (documented.__doc__ or "").strip().splitlines()[0]


def tools_page() -> str:
    """docs/tools.md."""
    return (
        "# Tools, resources and prompts\n\n"
        "Group and modifiers are what the policy decides by ([policy.md](policy.md) has who may call what). *Text* says where\n"
        "the words of an answer come from: reading text from outside taints the session. Rows of the profile `all` are listed\n"
        "with `--tools all`.\n\n" + _costs() + "\n" + "\n".join(_room(room) for room in ROOMS)
    )


def _costs() -> str:
    """What each identity is shown, and what that costs a model that reads it."""
    settings = load_settings({})
    policy = load_policy(settings)
    there = configured(settings, read_catalogue(given_by(settings)))
    shown = {p: Listings(profiled(ROOMS, p), policy, there) for p in ("core", "all")}
    return "What an identity is shown, and its tokens (four characters of JSON each):\n\n" + table(
        ("Who", "core: tools", "tokens", "all: tools", "tokens"),
        (
            [who, *(cell for listings in shown.values() for cell in _cost(listings.of(caller)))]
            for who, caller in _readers().items()
        ),
    )


def _readers() -> dict[str, Caller]:
    tiers = {tier: Caller(chain=(f"tier:{tier}",), roles={}, session="s") for tier in TIERS}
    people = {
        role: Caller(chain=("person:a",), roles={"person:a": frozenset({role})}, session="s") for role in sorted(ROLES)
    }
    service = Caller(chain=("service:game",), roles={}, session="s")
    everything = Caller(chain=("person:a",), roles={"person:a": frozenset(ROLES)}, session="s")
    return {**tiers, "service": service, **people, "all roles at once": everything}


def _cost(listing: Listing) -> tuple[str, str]:
    return str(len(listing.tools)), f"{len(listing.tools_json) / _CHARACTERS_A_TOKEN:,.0f}"


def _room(room: Room) -> str:
    return f"## {room.name}: {room.title}\n\n{room.description}\n\n" + "\n".join(
        _operation(o) for o in room.operations()
    )


def _operation(row: Operation) -> str:
    facts = [
        f"group `{row.group}`" if row.group else "unclassified",
        *(f"`{modifier}`" for modifier in sorted(row.modifiers)),
        {"none": "reads", "repeatable": "writes, repeatable", "once": "writes once"}[row.effect],
        {"ours": "text: ours", "outside": "text: from outside", "as_marked": "text: as each answer marks it"}[
            row.output
        ],
        f"profile `{row.profile}`",
        *([f"needs `{row.needs}`"] if row.needs else []),
    ]
    name = f"`{row.uri}` (`{row.name}`)" if isinstance(row, Resource) else f"`{row.name}`"
    fields: dict[str, Any] = row.arguments.model_json_schema(mode="validation").get("properties", {})
    return f"### {row.kind} {name}\n\n{row.description}\n\n*{' · '.join(facts)}*\n" + (
        "\n" + table(("Argument", "Type", "Default", ""), _arguments(row, fields)) if fields else ""
    )


def _arguments(row: Operation, fields: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    required: list[str] = row.arguments.model_json_schema(mode="validation").get("required", [])
    for name, schema in fields.items():
        default = "required" if name in required else f"`{json.dumps(schema.get('default'))}`"
        yield f"`{name}`", _json_kind(schema), default, schema.get("description", "")


def _json_kind(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(kind for kind in map(_json_kind, schema["anyOf"]) if kind != "null")
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if "$ref" in schema:
        return schema["$ref"].rsplit("/", 1)[-1]
    kind: str = schema.get("type", "any JSON")
    if kind == "array":
        kind = f"list of {_json_kind(schema.get('items', {}))}"
    limits = (
        ("minimum", "from {}"),
        ("maximum", "to {}"),
        ("maxLength", "up to {} characters"),
        ("maxItems", "up to {}"),
    )
    return " ".join([kind, *(words.format(schema[key]) for key, words in limits if key in schema)])


_ASKING_RULE = """
## A rule of your own that asks people

A file in `BODY_BROKER_POLICIES_DIR`; it is added to ours, so it can only ask for more. The annotations say whom to ask (`@approval`:
channels out of `slack`, `mfa`, `local`; `@approvers`: groups of approvers.toml; `@quorum`: how many, 1 without it; `@ttl`: how long the
request stays open, 15m without it), the condition decides. `context.approval.own` is the second factor of a person who calls alone;
leave it out where somebody else must always say yes. `body-broker policy check` says what does not hold together.

```cedar
@id("two-of-security-for-lore")
@approval("mfa")
@approvers("security")
@quorum("2")
@ttl("30m")
forbid (principal, action == Hub::Action::"delete_document", resource)
unless {
  context has approval &&
  context.approval.count >= 2 &&
  context.approval.groups.contains("security") && context.approval.via.contains("mfa")
};
```
"""


def policy_page() -> str:
    """docs/policy.md."""
    return (
        "# Who may call what\n\n"
        "Read off the policies: each cell is what they decide for a session without taint. A is allowed, ? asks people first,\n"
        "- is denied; words after a letter say in which cases. A tool has one granting group, which permits name, and any number\n"
        "of modifiers, which only forbid. Tools that are not here yet are in it: their rules are.\n\n"
        + matrix_markdown().rstrip("\n")
        + "\n\n"
        + modifiers_markdown().rstrip("\n")
        + "\n\nA session that has read text from outside needs an approval for everything in `queued`, `security_scan`, `write` and\n"
        "`admin_change`, and for every `external` or `destructive` tool. Every identity of a chain must be allowed.\n"
        + _ASKING_RULE
    )


def scan_rules_page() -> str:
    """docs/scan-rules.md."""
    pack: list[dict[str, Any]] = [
        rule for file in rule_files(None) for rule in yaml.safe_load(file.read_text("utf-8"))["rules"]
    ]
    grades = {"ERROR": "high", "WARNING": "medium", "INFO": "low"}
    return (
        "# Rules of a scan\n\n"
        "Our own semgrep rules, which every scan of code uses; `BODY_BROKER_SCAN_RULES_DIR` adds a studio's own. They follow a\n"
        "value within one function, not from one to the next: no finding is no proof. *Confidence* is how often a finding is\n"
        "a fault; severity is how bad it is then.\n\n"
        + table(
            ("Rule", "What it finds", "CWE", "Severity", "Confidence", "What to do"),
            (
                (f"`{r['id']}`", m["title"], m["cwe"], grades[r["severity"]], m["confidence"], m["fix"].strip())
                for r in pack
                for m in (r["metadata"],)
            ),
        )
    )


def cedar_schema() -> str:
    """policies/hub.cedarschema."""
    return emit(Catalogue.of(ROOMS))


def world_schema() -> str:
    """docs/world.schema.json."""
    return json.dumps(schema_of_world_files(), indent=2, ensure_ascii=False) + "\n"


def commands_page() -> str:
    """docs/commands.md."""
    return "# Commands\n\nEvery command takes `--data-dir`.\n\n" + "\n".join(_commands("body-broker", command_line))


def _commands(name: str, command: click.Command) -> Iterator[str]:
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=name)
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            assert found is not None
            yield from _commands(f"{name} {child}", found)
        return
    arguments = " ".join(
        p.make_metavar(click.Context(command)) for p in command.params if isinstance(p, click.Argument)
    )
    options = [
        (f"`{', '.join(p.opts)}`" + ("" if p.is_flag else f" {p.make_metavar(click.Context(command))}"), _help(p))
        for p in command.params
        if isinstance(p, click.Option) and "--data-dir" not in p.opts
    ]
    yield f"## `{' '.join(filter(None, (name, arguments)))}`\n\n{(command.help or '').strip()}\n" + (
        "\n" + table(("Option", ""), options) if options else ""
    )


def _help(option: click.Option) -> str:
    default = f"default {option.default}" if option.show_default else ""
    return " ".join(filter(None, (option.help, default)))
