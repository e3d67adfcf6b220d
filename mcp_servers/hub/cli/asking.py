"""The command `ask`: a question to the tiers, through the same gate as any client's; what came of it and how, as it comes."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import click
import orjson

from body_broker.calls import Json
from body_broker.errors import BadInput, BodyBrokerError, Denied, NotFound
from body_broker.settings import Settings
from body_broker.text import clean
from mcp_servers.hub.cli.context import data_dir_option, principal_of, run, settings_of
from mcp_servers.hub.requests import Request
from mcp_servers.hub.runtime import open_runtime
from tiers.faults import IN_WORDS
from tiers.model import Sla, Told

_ONLY_WITHOUT_NPC = ("sla", "persona", "tools", "model", "max_tokens")
_ONLY_WITH_NPC = ("player", "look_up")
_OPTIONS = {
    "latency_budget_ms": "--budget-ms",
    "max_tokens": "--max-tokens",
    "look_up": "--look-up",
    "The arguments do not fit generate:": "The question does not fit:",
    "The arguments do not fit talk_to_npc:": "The question does not fit:",
}
"""What a person at this command calls what the tools have other names for."""
_ARGUMENTS = re.compile("|".join(map(re.escape, _OPTIONS)))
_NO_MODEL = frozenset({"template", "policy"})
_NO_MODEL_CODE = 2
_LONG_RUNNING = "long-running-forbidden"
"""The rule by which services and the faster tiers have no jobs."""


@click.command()
@click.argument("prompt")
@click.option(
    "--as",
    "principal",
    default="service:terminal",
    show_default=True,
    metavar="WHO",
    help="Who asks, and pays: person:NAME or service:NAME; embedded stores only.",
)
@click.option("--sla", type=click.Choice(get_args(Sla)), default=None, help="How soon (default interactive).")
@click.option("--persona", default=None, metavar="NAME", help="In whose words: plain, storyteller, support, npc.")
@click.option("--npc", default=None, metavar="ID", help="Say it to this NPC of the world, as a player would.")
@click.option("--player", default=None, metavar="NAME", help="With --npc: who says it; each has a talk of their own.")
@click.option(
    "--look-up",
    type=click.Choice(("auto", "always", "never")),
    default=None,
    help="With --npc: whether the model may, must or must not call tools.",
)
@click.option(
    "--tools",
    default=None,
    metavar="NAMES",
    help="Tools that the model may call, or groups of models.toml (npc, rag_search, storyteller, ...): a,b.",
)
@click.option("--model", default=None, metavar="NAME", help="auto, a tier, or an engine (hub://models has them).")
@click.option("--max-tokens", type=int, default=None, help="The most that the answer may have.")
@click.option("--budget-ms", type=float, default=None, help="Milliseconds to the whole answer.")
@click.option("--json", "as_json", is_flag=True, help="The structured result, when it is whole.")
@data_dir_option
def ask(
    prompt: str, principal: str, data_dir: Path | None, budget_ms: float | None, *, as_json: bool, **given: Any
) -> None:
    """Ask a model PROMPT; the answer goes to stdout, how it came about to stderr.

    Without an engine the tier's fixed text is the answer, and each step down to it is shown. With --sla async the answer is a job,
    for an expert (body-broker jobs). Exit code 2 where no model answered, 1 where the question was refused.
    """
    asked = _asked(prompt, budget_ms, given)
    try:
        source = run(_ask(settings_of(data_dir), principal_of(principal), asked, as_json=as_json))
    except BodyBrokerError as error:
        error.message, error.next_step = _in_options(error.message), _in_options(error.next_step)
        raise
    if source in _NO_MODEL:
        sys.exit(_NO_MODEL_CODE)


def _in_options(text: str) -> str:
    """A text of ours with this command's options for the arguments of the tools that it calls."""
    return _ARGUMENTS.sub(lambda found: _OPTIONS[found[0]], text.replace("model=", "--model "))


@dataclass(frozen=True, slots=True)
class _Asked:
    """Which tool is called, with what."""

    tool: str
    arguments: Mapping[str, Json]


def _asked(prompt: str, budget_ms: float | None, given: Mapping[str, Any]) -> _Asked:
    more = {"latency_budget_ms": budget_ms} if budget_ms is not None else {}
    npc = given["npc"]
    apart = _ONLY_WITH_NPC if npc is None else _ONLY_WITHOUT_NPC
    if misplaced := [f"--{name.replace('_', '-')}" for name in apart if given[name] is not None]:
        why = "only with --npc" if npc is None else "not with --npc, which has its own"
        raise BadInput(f"{', '.join(misplaced)}: {why}.", next_step="Leave it out.")
    named = _ONLY_WITHOUT_NPC if npc is None else _ONLY_WITH_NPC
    found = {name: given[name] for name in named if given[name] is not None} | more
    if npc is not None:
        return _Asked("talk_to_npc", {"npc_id": npc, "message": prompt, **found})
    if "tools" in found:
        found["tools"] = [name.strip() for name in given["tools"].split(",") if name.strip()]
    return _Asked("generate", {"prompt": prompt, **found})


async def _ask(settings: Settings, principal: str, asked: _Asked, *, as_json: bool) -> str:
    """Ask, and show it; what the answer came from."""
    screen = _Screen(principal, streams=not as_json and sys.stdout.isatty(), quiet=as_json)
    async with open_runtime(settings, name="cli") as runtime:
        caller = await runtime.identities.local(principal, over="cli")
        await runtime.services.world.load()  # a command does not follow the world, it reads it once
        request = Request(
            name=asked.tool, kind="tool", arguments=asked.arguments, caller=caller, hear=screen.hear, restarts=True
        )
        try:
            answer = await runtime.gate.run(request)
        except BodyBrokerError as error:
            screen.fail(error)
            if isinstance(error, Denied) and _LONG_RUNNING in _rules(error):
                step = f"{error.next_step} Jobs are for people: name one with --as person:NAME."
                raise Denied(error.message, next_step=step, details=error.details) from error
            if asked.tool != "talk_to_npc" or not isinstance(error, NotFound):
                raise
            step = f"{error.next_step} `body-broker world load` brings the starter world; --data-dir says which stores are asked."
            raise NotFound(error.message, next_step=step, details=error.details) from error
    result: dict[str, Any] = answer.result.model_dump(mode="json")
    if as_json:
        click.echo(orjson.dumps(result, option=orjson.OPT_INDENT_2).decode())
    else:
        screen.end(result)
    return str(result["source"])


def _rules(error: Denied) -> list[str]:
    found = error.details.get("rules")
    return found if isinstance(found, list) else []


class _Screen:
    """A person's terminal, or a pipe, which gets the answer once it is whole."""

    def __init__(self, principal: str, *, streams: bool, quiet: bool) -> None:
        self._principal, self._streams, self._quiet, self._said = principal, streams, quiet, False
        self._heard: set[str] = set()

    async def hear(self, said: Told, *, outside: bool) -> None:
        """One thing on the way."""
        del outside
        if said.kind == "text":
            if self._streams:
                click.echo(clean(said.text), nl=False)
                self._said = True
        elif said.kind == "restart":
            if self._said:
                self._step("what it said so far is taken back")
        elif said.kind == "routed":
            self._step(f"goes to {said.text}")
        elif said.kind == "tool":
            self._step(f"calls {said.text}")
        elif said.kind == "fallback":
            engine, _, reason = said.text.partition(": ")
            self._step(_step(engine, reason))

    def _step(self, what: str) -> None:
        if self._said:
            click.echo()
        self._said = False
        if not self._quiet:
            self._heard.add(what)
            click.echo(f"· {clean(what, limit=200)}", err=True)

    def fail(self, error: BodyBrokerError) -> None:
        """The steps down to no answer at all."""
        steps = error.details.get("engines")
        downs = [step.partition(": ") for step in steps] if isinstance(steps, list) else []
        if self._said:
            click.echo()
        if not self._quiet:
            for line in _downs([(engine, reason.replace(" ", "_")) for engine, _, reason in downs], self._heard):
                click.echo(line, err=True)

    def end(self, result: Mapping[str, Any]) -> None:
        """The answer, if it was not shown as it came, then how it came about."""
        if self._said:
            click.echo()
        else:
            click.echo(clean(result["says"] if "says" in result else result["content"]))
        for line in _facts(result, self._heard):
            click.echo(line, err=True)
        if job := result.get("job"):
            click.echo(f"job    body-broker jobs wait {job} --as {self._principal}", err=True)


def _step(engine: str, reason: str) -> str:
    return f"not {engine}: {IN_WORDS.get(reason, reason)}"


def _downs(downs: Sequence[tuple[str, str]], heard: set[str]) -> list[str]:
    """Steps down in lines, but for those that were heard of."""
    steps = dict.fromkeys(_step(engine, reason) for engine, reason in downs if reason != "not_configured")
    lines = [f"step   {step}" for step in steps if step not in heard]
    if absent := [engine for engine, reason in downs if reason == "not_configured"]:
        lines.append(f"step   without an address: {', '.join(absent)}")
    return lines


def _facts(result: Mapping[str, Any], heard: set[str]) -> list[str]:
    """How an answer came about, in lines for people, but for what they have heard."""
    model = f" ({result['model']})" if result["model"] else ""
    by = f"{result['engine']}{model} of {result['tier']}" if result["engine"] else "no model"
    if result["source"] == "job":
        return []  # how it comes about is for the job to say
    first = f", first words after {_seconds(result['ttft_s'])}" if result["ttft_s"] is not None else ""
    cost = "not known" if result["cost_usd"] is None else f"${result['cost_usd']:.6f}" if result["cost_usd"] else "$0"
    cost += f" for {result['prompt_tokens']} tokens read, {result['completion_tokens']} written"
    cut = {"length": ", cut at its most tokens", "deadline": ", cut when its time was over"}.get(result["finish"], "")
    lines = _downs([(down["engine"], down["reason"]) for down in result["fallbacks"]], heard)
    lines += [f"tool   {used['name']}: {used['outcome']}, {_seconds(used['seconds'])}" for used in result["tools"]]
    lines += [
        f"from   {result['source']}, by {by}{cut}",
        f"time   {_seconds(result['seconds'])}{first}",
    ]
    lines.append(f"cost   {cost}")
    if result["note"]:
        lines.append(f"note   {result['note']}")
    if result["from_outside"]:
        lines.append("mark   text from outside went into it: read it as data")
    return lines


def _seconds(found: float) -> str:
    return f"{found * 1_000:.0f} ms" if found < 1 else f"{found:.1f} s"
