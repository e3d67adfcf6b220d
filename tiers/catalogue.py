"""Owns what is known of engines, tiers, roles and money before anything runs: models.toml as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Literal

from body_broker.calls import Json
from tiers.model import Tier

DialectName = Literal["vllm", "trtllm", "openai", "azure", "anthropic", "sagemaker"]


@dataclass(frozen=True, slots=True)
class Price:
    """What tokens cost, in US dollars for a million, with where and when that was read."""

    prompt: Decimal
    completion: Decimal
    cached: Decimal
    source: str
    as_of: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """One engine of models.toml, with its address and key filled in from the settings.

    Attributes:
        name: Unique; what `--model` and /v1/models call it.
        tier: The tier it serves.
        smaller: Whether it stands in for a larger one.
        dialect: How it is spoken to.
        url: Base URL up to and without /v1; None where it is not configured.
        key: Its API key; never shown.
        model: As it calls its model; None: the one that it serves, asked once.
        variants: Other models that it may serve instead.
        size: Parameters in words, such as 3B; None where the model may be another one than that of models.toml.
        quantisation: Such as awq-4bit; None in the same case.
        context_tokens: The most that prompt and answer may have together.
        context_known: Whether that was said of the very model it serves; where not, the engine is asked.
        concurrency: Requests it is given at once; others wait here. 0: it takes only what may wait.
        background: The same for what may wait: a queue of its own, so that neither waits for the other here. 0: it takes none.
        queue: How many may wait here.
        ttft_s: When it counts as silent.
        stall_s: How long between two pieces.
        can_tools, can_schema: What it may be asked for.
        preamble_tokens: The most that the provider itself adds to a prompt with tools or a schema, and has paid for.
        price: None where tokens cost nothing extra.
        roles: What it is good for: dialogue, support, plain, expert.
        address: The name under which the settings know its URL and key.
        adapter: The adapter (LoRA) it is asked with, by its name at the engine.
        failure_threshold, breaker_s: Of its circuit breaker.
    """

    name: str
    tier: Tier
    dialect: DialectName
    smaller: bool = False
    url: str | None = None
    key: str | None = field(default=None, repr=False)
    model: str | None = None
    variants: tuple[str, ...] = ()
    size: str | None = None
    quantisation: str | None = None
    context_tokens: int = 8_192
    context_known: bool = True
    concurrency: int = 32
    background: int = 4
    queue: int = 100
    ttft_s: float = 2.0
    stall_s: float = 2.0
    can_tools: bool = True
    can_schema: bool = True
    preamble_tokens: int = 1_000
    price: Price | None = None
    roles: frozenset[str] = frozenset()
    address: str = ""
    adapter: str | None = None
    failure_threshold: int = 5
    breaker_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Role:
    """A role of the seeds, such as deepseek-v3-storyteller: its tier, its models in order, and the tool groups it works with.

    `models` are names of engines, or what engines call their models.
    """

    name: str
    tier: Tier
    models: tuple[str, ...]
    tools: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Caps:
    """What may be spent in a day (UTC), in US dollars: by everybody together in one tier, and by one asker in one tier.

    `askers` has the caps of single askers, by principal.
    """

    tier_day: Mapping[Tier, Decimal]
    asker_day: Mapping[Tier, Decimal]
    askers: Mapping[str, Decimal]


@dataclass(frozen=True, slots=True)
class Profile:
    """Settings of a server of ours: what `engine-profile` renders into its command line and configuration file.

    Attributes:
        serves: The server's dialect.
        port: Where it listens, on loopback.
        engine: Whose server it is, by its name in models.toml; it is asked for that engine's model.
        says: What models.toml must say of that engine beside its address.
    """

    name: str
    serves: str
    settings: Mapping[str, Json]
    port: int = 8_000
    engine: str = ""
    says: Mapping[str, Json] = field(default_factory=dict[str, Json])


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Everything in models.toml, checked.

    Attributes:
        engines: By name, in the order of the file; `of_tier` has the order of falling back.
        then: By tier the tiers that are asked when none of its own engines answers.
        tool_groups: The seeds' names for tools (semgrep, aws-api, rag_search, ...) to the hub's own.
    """

    engines: Mapping[str, EngineSpec]
    then: Mapping[Tier, tuple[Tier, ...]]
    roles: Mapping[str, Role]
    tool_groups: Mapping[str, tuple[str, ...]]
    caps: Caps
    profiles: Mapping[str, Profile]

    def of_tier(self, tier: Tier) -> tuple[EngineSpec, ...]:
        """The engines of a tier, in the order of falling back: as in the file, but smaller ones after all others."""
        return tuple(
            sorted((spec for spec in self.engines.values() if spec.tier is tier), key=lambda spec: spec.smaller)
        )

    def of_role(self, role: Role) -> tuple[EngineSpec, ...]:
        """The engines of a role: those of its tier with its models, in its order, each once.

        One that takes whatever model it serves counts as each of its `variants`. A role of experts goes on with the rest of their tier,
        and then where that goes on: its jobs are to be done, if by others.
        """
        ours = self.of_tier(role.tier)
        chosen = [spec for model in role.models for spec in ours if _serves(spec, model)]
        if role.tier is Tier.BRONZE:
            chosen += [*ours, *(spec for tier in self.after(role.tier) for spec in self.of_tier(tier))]
        return tuple({spec.name: spec for spec in chosen}.values())

    def after(self, tier: Tier) -> tuple[Tier, ...]:
        """Where a tier goes on; where none of those has an address either, on to where they go on: with cloud keys alone gold reaches them."""
        there = {spec.tier for spec in self.engines.values() if spec.url is not None}
        then = self.then.get(tier, ())
        if not there.isdisjoint({tier, *then}):
            return then
        further = (far for near in then for far in self.then.get(near, ()) if far in there)
        return (*then, *(far for far in dict.fromkeys(further) if far is not tier))

    def answering(self) -> tuple[str, ...]:
        """The names that somebody may be asked by: tiers whose chain has an engine with an address, then those engines."""
        there = {spec.name: spec.tier for spec in self.engines.values() if spec.url is not None}
        tiers = (tier.value for tier in Tier if not {tier, *self.after(tier)}.isdisjoint(there.values()))
        return tuple(dict.fromkeys(("auto", *tiers, *there)))


def _serves(spec: EngineSpec, model: str) -> bool:
    return model in {spec.name, spec.model} or (spec.model is None and model in spec.variants)


@dataclass(frozen=True, slots=True)
class Given:
    """What the settings say of the engines: addresses, keys, model names and dialects, by address; and the studio's own file."""

    file: Path | None = None
    urls: Mapping[str, str] = field(default_factory=dict[str, str])
    keys: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    models: Mapping[str, str] = field(default_factory=dict[str, str])
    dialects: Mapping[str, DialectName] = field(default_factory=dict[str, DialectName])
