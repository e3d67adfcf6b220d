"""Owns reading models.toml: ours, the studio's laid over it, the settings' addresses and keys filled in, every problem named."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Generator, Mapping
from decimal import Decimal
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from body_broker.calls import Json
from body_broker.errors import SettingsError
from body_broker.text import clean
from tiers.catalogue import Caps, Catalogue, DialectName, EngineSpec, Given, Price, Profile, Role
from tiers.model import Tier

_SHOWN_MAX = 20
_PLACE = re.compile(r" \(at line \d+, column \d+\)")
_PAGE = "docs/tiers.md has its form."

Table = Mapping[str, Any]  # of TOML, before it is checked
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Words = Annotated[str, Field(min_length=1, max_length=200)]
Money = Annotated[Decimal, Field(ge=0, le=1_000_000, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, le=3_600)]
Several = Annotated[int, Field(ge=0, le=100_000)]


def _read_key(path: str) -> str:
    try:
        key = Path(path).expanduser().read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError, RuntimeError) as error:  # the last: ~ of nobody
        raise ValueError("cannot be read as text") from error
    if not key or not key.isascii() or not key.isprintable():
        raise ValueError("holds no key: one line of visible characters")
    return key


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class _Price(_Closed):
    prompt: Money
    completion: Money
    cached: Money | None = None
    source: Words = "the studio's own file"
    as_of: Words = "unknown"


class _Engine(_Closed):
    tier: Tier
    dialect: DialectName
    enabled: bool = True
    address: Name | None = None
    url: Annotated[str, Field(pattern=r"^https?://[^\s/@]+(/\S*)?$")] | None = None
    api_key_file: Annotated[str, AfterValidator(_read_key)] | None = None
    smaller: bool = False
    model: Words | None = None
    variants: tuple[Words, ...] = ()
    size: Words | None = None
    quantisation: Words | None = None
    context_tokens: Annotated[int, Field(ge=128, le=10_000_000)] = 8_192
    concurrency: Several = 32
    background: Several = 4
    queue: Several = 100
    ttft_s: Seconds = 2.0
    stall_s: Seconds = 2.0
    can_tools: bool = True
    can_schema: bool = True
    preamble_tokens: Several = 1_000
    price: _Price | None = None
    roles: frozenset[Name] = frozenset()
    adapter: Words | None = None
    failure_threshold: Annotated[int, Field(ge=1, le=1_000)] = 5
    breaker_s: Seconds = 60.0

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.dialect == "sagemaker":
            if self.tier is not Tier.BRONZE or self.smaller:
                raise ValueError("an endpoint that answers later is for the bronze tier alone")
            if self.url is not None or self.api_key_file is not None:
                raise ValueError("a SageMaker endpoint has no url and no key here: it is a setting, sagemaker_endpoint")
        if self.tier is Tier.CLOUD and self.price is None:
            raise ValueError("an engine of the cloud tier needs its price; one that costs nothing belongs to silver")
        if self.api_key_file is not None and self.url is None:
            raise ValueError("api_key_file goes with a url beside it; the key of an address is a setting")
        if not self.concurrency and not self.background:
            raise ValueError("concurrency and background are both 0: it would never be asked")
        return self


class _Order(_Closed):
    then: tuple[Tier, ...] = ()


class _Role(_Closed):
    tier: Tier
    model: Words
    backups: tuple[Words, ...] = ()
    tools: tuple[Words, ...] = ()


class _Caps(_Closed):
    tier_day: Mapping[Tier, Money] = {}
    asker_day: Mapping[Tier, Money] = {}
    askers: Mapping[Words, Money] = {}


class _Profile(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, hide_input_in_errors=True)

    serves: Literal["trtllm", "vllm"]
    model: Words
    port: Annotated[int, Field(ge=1, le=65_535)] = 8_000
    engine: Name | None = None
    says: Mapping[str, str | bool | int | float] = {}

    @property
    def settings(self) -> dict[str, Json]:
        """What its server is told."""
        return {"model": self.model, **(self.__pydantic_extra__ or {})}

    @model_validator(mode="after")
    def _flat(self) -> Self:
        if wrong := [n for n, value in self.settings.items() if not isinstance(value, str | bool | int | float)]:
            raise ValueError(f"{', '.join(wrong)}: must be text, a number, true or false")
        return self


class _File(_Closed):
    engines: Mapping[Name, _Engine]
    tiers: Mapping[Tier, _Order] = {}
    roles: Mapping[Name, _Role] = {}
    tool_groups: Mapping[Name, tuple[Words, ...]] = {}
    caps: _Caps = _Caps()
    profiles: Mapping[Name, _Profile] = {}

    @field_validator("engines")
    @classmethod
    def _no_tiers(cls, engines: Mapping[str, _Engine]) -> Mapping[str, _Engine]:
        if taken := sorted({*Tier, "auto"}.intersection(engines) - {Tier.GOLD, Tier.SILVER, Tier.BRONZE}):
            raise ValueError(f"an engine cannot be called {', '.join(taken)}: that names a tier")
        return engines


def read_catalogue(given: Given) -> Catalogue:
    """Everything that is known of engines before one is asked; blocking.

    Args:
        given: What the settings say.

    Raises:
        SettingsError: A file is no TOML or does not fit; every problem is named, no value is repeated.
    """
    ours: dict[str, Any] = tomllib.loads(files("tiers").joinpath("models.toml").read_text("utf-8"))
    theirs = _from_file(given.file) if given.file is not None else {}
    tables = _laid_over(ours, theirs)
    problems = [*_contradictions(tables), *_unpriced(ours, theirs)]
    try:
        found = _File.model_validate(tables)
    except ValidationError as error:
        problems = [_problem(e) for e in error.errors(include_input=False, include_url=False)] + problems
        raise _unfit(problems) from error
    if problems:
        raise _unfit(problems)
    return Catalogue(
        engines={n: _spec(n, e, given, _Said.of(n, ours, theirs)) for n, e in found.engines.items() if e.enabled},
        then={tier: order.then for tier, order in found.tiers.items()},
        roles={n: Role(n, r.tier, (r.model, *r.backups), r.tools) for n, r in found.roles.items()},
        tool_groups=found.tool_groups,
        caps=Caps(found.caps.tier_day, found.caps.asker_day, found.caps.askers),
        profiles={
            n: Profile(n, p.serves, p.settings, p.port, p.engine or n, p.says) for n, p in found.profiles.items()
        },
    )


class _Said(NamedTuple):
    """What is said of one engine's model.

    Attributes:
        model: That which our file speaks of.
        fields: What the studio's own file says itself.
    """

    model: str | None
    fields: frozenset[str]

    @classmethod
    def of(cls, name: str, ours: Table, theirs: Table) -> _Said:
        """Of the engine of this name."""
        model = dict(_items(ours, "engines")).get(name, {}).get("model")
        return cls(model, frozenset(dict(_items(theirs, "engines")).get(name, {})))

    def is_of(self, field: str, model: str | None) -> bool:
        """Whether a field was said of this very model."""
        return field in self.fields or (model is not None and model == self.model)


def _spec(name: str, engine: _Engine, given: Given, said: _Said) -> EngineSpec:
    address = engine.address or name
    known: dict[str, Any] = engine.model_dump(exclude={"enabled", "address", "url", "api_key_file", "model", "price"})
    price = engine.price
    own = engine.url is not None  # a key of the settings goes to the address of the settings and nowhere else
    model = engine.model if own else given.models.get(address, engine.model)
    known |= {field: None for field in ("size", "quantisation") if not said.is_of(field, model)}
    if not own:
        known["dialect"] = given.dialects.get(address, engine.dialect)
    return EngineSpec(
        name=name,
        address=address,
        url=engine.url if own else given.urls.get(address),
        key=engine.api_key_file if own else given.keys.get(address),
        model=model,
        context_known=said.is_of("context_tokens", model),
        price=price
        and Price(
            price.prompt,
            price.completion,
            price.prompt if price.cached is None else price.cached,
            price.source,
            price.as_of,
        ),
        **known,
    )


def _contradictions(tables: Table) -> Generator[str]:
    """What no table can see alone; where a table has not the right form, that is told in its own place."""
    for tier, order in _items(tables, "tiers"):
        then = _list(order, "then")
        if tier in then or Tier.BRONZE in then:
            yield f"tiers.{tier}.then: names the tier itself, or bronze, which answers later"
        if len(set(then)) < len(then):
            yield f"tiers.{tier}.then: names a tier twice"
    engines = dict(_items(tables, "engines"))
    for name, engine in engines.items():
        if name in {Tier.GOLD, Tier.SILVER, Tier.BRONZE} and engine.get("tier") not in {name, None}:
            yield f"engines.{name}.tier: the name is a tier's, so it must be that one"
    for name, role in _items(tables, "roles"):
        if role.get("tier") == Tier.BRONZE:
            continue
        for model in (role.get("model"), *_list(role, "backups")):
            if not any(model in {n, e.get("model")} and e.get("tier") == role.get("tier") for n, e in engines.items()):
                yield f"roles.{name}: one of its models is no engine's of its tier"


def _unpriced(ours: Table, theirs: Table) -> Generator[str]:
    """Engines that were given another model at the price of ours: money would be counted wrongly."""
    priced = dict(_items(ours, "engines"))
    for name, engine in _items(theirs, "engines"):
        known = priced.get(name, {})
        if "price" in known and "price" not in engine and engine.get("model", known.get("model")) != known.get("model"):
            yield f"engines.{name}.price: missing, and ours is another model's"


def _items(tables: Table, name: str) -> Generator[tuple[str, Table]]:
    found = tables.get(name)
    if isinstance(found, dict):
        for key, value in cast("dict[str, Any]", found).items():
            if isinstance(value, dict):
                yield key, cast("Table", value)


def _list(table: Table, name: str) -> list[str]:
    found = table.get(name)
    return [str(each) for each in cast("list[Any]", found)] if isinstance(found, list) else []


def _problem(found: Any) -> str:  # pydantic's ErrorDetails
    parts = [clean(str(part), limit=64) for part in found["loc"] if part != "[key]"]
    said = "unknown" if found["type"] == "extra_forbidden" else str(found["msg"]).removeprefix("Value error, ")
    return f"{'.'.join(parts)}: {said}"


def _unfit(problems: list[str]) -> SettingsError:
    once = list(dict.fromkeys(problems))
    more = f"; and {len(once) - _SHOWN_MAX} more" if len(once) > _SHOWN_MAX else ""
    return SettingsError(
        f"models.toml, ours with yours laid over it, does not fit: {'; '.join(once[:_SHOWN_MAX])}{more}.",
        next_step=_PAGE,
        details={"setting": "BODY_BROKER_MODELS", "problems": list[str](once)},
    )


def _from_file(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except tomllib.TOMLDecodeError as error:
        place = _PLACE.search(str(error))  # its text may repeat what stands there
        raise SettingsError(
            f"The file of BODY_BROKER_MODELS is not TOML{place[0] if place else ''}.", next_step=_PAGE
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            "The file of BODY_BROKER_MODELS cannot be read as text.", next_step="Check its path, and who may read it."
        ) from error


def _laid_over(below: Table, above: Table, *, whole: frozenset[str] = frozenset({"price"})) -> dict[str, Any]:
    """Tables are merged key by key; anything else, and a price, is replaced: half a price is no price."""
    found = dict(below)
    for name, value in above.items():
        under = found.get(name)
        if isinstance(value, dict) and isinstance(under, dict) and name not in whole:
            found[name] = _laid_over(cast("Table", under), cast("Table", value), whole=whole)
        else:
            found[name] = value
    return found
