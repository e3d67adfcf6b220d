"""Gold's latency where a GPU is: our own engine client against a trtllm-serve or vLLM given by its URL, with the conditions it was measured in.

    python -m tests.bench.gold_latency --url http://gpu:8000 --dialect trtllm --model NAME --npcs 1,4,16,64 --seconds 30

Each NPC asks for eight tokens behind a prompt of about 300 tokens that all share, waits for the answer and asks again, so N NPCs are N
requests at once. Measured is what the product's client sees: to the first piece, and between pieces. What must be told with every figure is
printed with it. Say what weights they were with --weights: random ones prove speed and nothing else. A server that sends several tokens
in one piece is told by its tokens a piece: its gaps are no latency between tokens. Answers of fewer tokens than were asked for are told too.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import platform
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import count, pairwise
from typing import get_args

from tiers.catalogue import DialectName, EngineSpec
from tiers.counts import Counts
from tiers.deadline import Deadline
from tiers.engine import Engine
from tiers.faults import EngineFault
from tiers.model import Message, Tier
from tiers.wire.base import Ask, Piece

TOKENS = 8
_WARM_UP = 5
_ANSWER_S = 30.0
_RULES = (
    "You choose what one character of a game does next. You see the place they are in, who is there, how they feel and what has just "
    "happened. Answer with one line: what they do, and towards whom. Do not explain, do not greet, do not add a second line. "
) * 5
"""About 300 tokens that every NPC's request begins with: an engine with a prefix cache reads them once."""


@dataclass
class Seen:
    """What one load saw, in seconds and tokens."""

    npcs: int
    first_s: list[float] = field(default_factory=list[float])
    gap_s: list[float] = field(default_factory=list[float])
    whole_s: list[float] = field(default_factory=list[float])
    tokens: int = 0
    pieces: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    faults: list[str] = field(default_factory=list[str])
    seconds: float = 0.0


async def measure(spec: EngineSpec, npcs: Sequence[int], seconds: float) -> list[Seen]:
    """One load after the other, each for so long, with as many requests at once as there are NPCs."""
    found: list[Seen] = []
    for number in npcs:
        engine = Engine(_wide(spec, number), Counts())
        try:
            for _ in range(_WARM_UP):
                await _ask(engine, Seen(number), 0)
            found.append(await _load(engine, number, seconds))
        finally:
            await engine.close()
    return found


def _wide(spec: EngineSpec, width: int) -> EngineSpec:
    """Nobody waits here: what the server does with so many at once is what is measured."""
    return EngineSpec(
        name=spec.name,
        tier=Tier.GOLD,
        dialect=spec.dialect,
        url=spec.url,
        key=spec.key,
        model=spec.model,
        concurrency=width,
        queue=0,
        ttft_s=_ANSWER_S,
        stall_s=_ANSWER_S,
        failure_threshold=1_000_000,
    )


async def _load(engine: Engine, npcs: int, seconds: float) -> Seen:
    now = asyncio.get_running_loop().time
    seen, began, turns = Seen(npcs), now(), count()

    async def npc() -> None:
        while now() - began < seconds:
            await _ask(engine, seen, next(turns))

    await asyncio.gather(*(npc() for _ in range(npcs)))
    seen.seconds = now() - began
    return seen


async def _ask(engine: Engine, seen: Seen, turn: int) -> None:
    now = asyncio.get_running_loop().time
    times: list[float] = []

    async def hear(_piece: Piece) -> None:
        times.append(now())

    asked = (
        Message(role="system", content=_RULES),
        Message(role="user", content=f"Night {turn}. A bell rings over the water, and somebody laughs."),
    )
    ask = Ask(
        model=await engine.model(), messages=asked, max_tokens=TOKENS, temperature=0.0, urgency=1.0, cache_salt="bench"
    )
    began = now()
    try:
        said = await engine.run(ask, Deadline.after(_ANSWER_S), hear)
    except EngineFault as fault:
        seen.faults.append(fault.reason)
        return
    seen.first_s.append(times[0] - began)
    seen.gap_s += [later - earlier for earlier, later in pairwise(times)]
    seen.whole_s.append(said.seconds)
    seen.tokens += said.usage.completion
    seen.pieces += len(times)
    seen.prompt_tokens, seen.cached_tokens = said.usage.prompt, seen.cached_tokens + said.usage.cached


def table(found: Sequence[Seen], conditions: Sequence[str]) -> str:
    """The figures as Markdown, under everything that they were measured in."""
    lines = [*(f"- {each}" for each in conditions), ""]
    lines += [
        (
            "| NPCs | answers | answers/s | first p50 / p95 / p99 ms | between pieces p50 / p95 / p99 ms | whole p95 ms "
            "| tokens an answer, a piece | prompt tokens, of which cached | faults |"
        ),
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*lines, *map(_line, found)])


def _line(seen: Seen) -> str:
    answers = len(seen.whole_s)
    cached = seen.cached_tokens / max(1, answers)
    return (
        f"| {seen.npcs} | {answers} | {answers / max(seen.seconds, 1e-9):.1f} | {_three(seen.first_s)} "
        f"| {_three(seen.gap_s)} | {_ms(seen.whole_s, 0.95)} | {seen.tokens / max(1, answers):.1f}, {seen.tokens / max(1, seen.pieces):.2f} "
        f"| {seen.prompt_tokens}, {cached:.0f} | {_faults(seen.faults)} |"
    )


def _three(found: Sequence[float]) -> str:
    return " / ".join(_ms(found, share) for share in (0.5, 0.95, 0.99))


def _ms(found: Sequence[float], share: float) -> str:
    return f"{sorted(found)[math.ceil(len(found) * share) - 1] * 1_000:.2f}" if found else "-"


def _faults(found: Sequence[str]) -> str:
    return ", ".join(f"{reason} {found.count(reason)}" for reason in sorted(set(found))) or "none"


def reached(seen: Seen, weights_gb: float) -> str:
    """How fast weights were read, if each token reads them once: what a GPU's memory bounds, at one NPC."""
    if not seen.gap_s:
        return "- no gaps: nothing to compare with the memory's speed"
    gap_s = statistics.median(seen.gap_s)
    return f"- at {seen.npcs} NPC: {weights_gb:g} GB of weights in {gap_s * 1_000:.2f} ms is {weights_gb / gap_s / 1_000:.2f} TB/s"


async def conditions_of(spec: EngineSpec, weights: str, seconds: float) -> list[str]:
    """What must be told with every figure, as far as this side can know it."""
    return [
        f"server: {spec.dialect} dialect, model {spec.model or 'the one it serves'}; weights: {weights}",
        f"GPU here: {await _gpus()}",
        (
            f"client: tiers.engine, aiohttp {version('aiohttp')}, Python {platform.python_version()}, {os.cpu_count()} cores, "
            f"load {os.getloadavg()[0]:.1f}; client and server share this machine if the URL is loopback"
        ),
        f"each NPC asks for {TOKENS} tokens at temperature 0, waits, and asks again, for {seconds:g} s; {_WARM_UP} requests before are not counted",
    ]


async def _gpus() -> str:
    if shutil.which("nvidia-smi") is None:
        return "none seen"
    asked = ("--query-gpu=name,driver_version", "--format=csv,noheader")
    process = await asyncio.create_subprocess_exec("nvidia-smi", *asked, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    return "; ".join(out.decode(errors="replace").split("\n")).strip("; ") or "none seen"


class Wanted(argparse.Namespace):
    """The command line."""

    url: str
    dialect: DialectName
    model: str | None
    key: str | None
    npcs: str
    seconds: float
    weights: str
    weights_gb: float | None


async def run(wanted: Wanted) -> tuple[str, bool]:
    """The report, and whether anything was answered."""
    spec = EngineSpec(
        name="gold", tier=Tier.GOLD, dialect=wanted.dialect, url=wanted.url, model=wanted.model, key=wanted.key
    )
    conditions = await conditions_of(spec, wanted.weights, wanted.seconds)
    found = await measure(spec, [int(number) for number in wanted.npcs.split(",")], wanted.seconds)
    report = table(found, conditions)
    if wanted.weights_gb is not None:
        report += f"\n\n{reached(found[0], wanted.weights_gb)}"
    return report, all(seen.whole_s for seen in found)


def main() -> int:
    """Measure and print; exit code 1 where a load had no answer at all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--url", required=True, help="of the server, without /v1")
    parser.add_argument("--dialect", choices=get_args(DialectName), default="trtllm")
    parser.add_argument("--model", help="as the server calls it; default: the only one that it serves")
    parser.add_argument("--key", help="its API key")
    parser.add_argument("--npcs", default="1,4,16,64")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--weights", default="not told", help="for the report: random bf16 of the 3B shape, AWQ, ...")
    parser.add_argument("--weights-gb", type=float, help="their size, to compare with the memory's speed")
    report, answered = asyncio.run(run(parser.parse_args(namespace=Wanted())))
    print(report)
    return 0 if answered else 1


if __name__ == "__main__":
    sys.exit(main())
