"""The router: the source documents' truth table, who is asked in which order, who is not and why, and what is refused at once."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from body_broker.errors import BadInput, NotConfigured, TooLarge
from tests.tiers.routing import ALL, ASKER, SMALL, Routing, asked, catalogue_of, skipped
from tiers.breaker import TierCircuitBreaker
from tiers.chain import Candidate
from tiers.counts import Counts
from tiers.deadline import Deadline
from tiers.model import (
    Asker,
    Fallback,
    InferenceRequest,
    InferenceResult,
    Listener,
    Message,
    Sla,
    Tier,
    Told,
    ToolOffer,
)
from tiers.router import Decision, Serves

SLAS: tuple[Sla, ...] = ("real-time", "interactive", "async")
PROSE = "The ferry leaves at dusk. "


def seed_route(*, sla: str, max_tokens: int, needs_tools: bool, requires_expert_reasoning: bool) -> Tier:
    """The source documents' ModelRouter.route, line for line."""
    if sla == "real-time" and max_tokens <= 8:
        return Tier.GOLD
    if sla == "interactive" and needs_tools:
        return Tier.SILVER
    if sla == "async" or requires_expert_reasoning:
        return Tier.BRONZE
    return Tier.SILVER


@pytest.mark.parametrize("tools", [None, (), ("search_lore",)])
@pytest.mark.parametrize("sla", SLAS)
def test_route_is_the_truth_table_of_the_source_documents(sla: Sla, tools: tuple[str, ...] | None) -> None:
    router = Routing(catalogue_of()).router

    for tokens, expert in itertools.product((1, 8, 9, 2_000), (False, True)):
        request = InferenceRequest(
            prompt=PROSE, sla=sla, max_tokens=tokens, tools=tools, requires_expert_reasoning=expert
        )
        expected = seed_route(sla=sla, max_tokens=tokens, needs_tools=bool(tools), requires_expert_reasoning=expert)
        assert router.route(request) is expected
        assert router.decide(request, remaining_s=60).tier is expected


def test_tools_of_the_clients_own_are_tools_too() -> None:
    router = Routing(catalogue_of()).router
    offer = ToolOffer("roll_dice", "Rolls.", {"type": "object"})

    request = InferenceRequest(prompt=PROSE, offers=(offer,), requires_expert_reasoning=True)

    assert router.route(request) is Tier.SILVER


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (InferenceRequest(prompt=PROSE, sla="real-time", max_tokens=8), "real-time, at most 8 tokens"),
        (InferenceRequest(prompt=PROSE, sla="real-time", max_tokens=9), "real-time, but more than 8 tokens"),
        (InferenceRequest(prompt=PROSE, tools=("search_lore",)), "interactive, with tools"),
        (InferenceRequest(prompt=PROSE), "interactive"),
        (InferenceRequest(prompt=PROSE, sla="async"), "async"),
        (InferenceRequest(prompt=PROSE, requires_expert_reasoning=True), "expert reasoning"),
        (InferenceRequest(prompt=PROSE, model="cloud"), "the request names cloud"),
        (InferenceRequest(prompt=PROSE, role="deepseek-v3-admin"), "the role deepseek-v3-admin is bronze's"),
    ],
    ids=["gold", "long", "tools", "plain", "async", "expert", "named", "role"],
)
def test_a_decision_says_which_line_of_the_table_it_was(request_: InferenceRequest, said: str) -> None:
    assert Routing(catalogue_of()).router.decide(request_, remaining_s=60).reason == said


def test_gold_goes_on_to_its_smaller_model_and_then_to_silver_while_a_quarter_of_a_second_is_left(
    tmp_path: Path,
) -> None:
    routing = Routing(catalogue_of(*ALL, toml=SMALL, folder=tmp_path))
    request = InferenceRequest(prompt=PROSE, sla="real-time", max_tokens=8)

    decision = routing.router.decide(request, remaining_s=0.3)

    assert [(c.engine.spec.name, c.needs_s) for c in decision.candidates] == [
        ("gold", 0.0),
        ("gold-small", 0.0),
        ("silver", 0.25),
        ("silver-small", 0.25),
    ]
    late = routing.router.decide(request, remaining_s=0.2)
    assert asked(late) == ["gold", "gold-small"]
    assert skipped(late) == {"silver": "too_slow", "silver-small": "too_slow"}


def test_silver_goes_on_to_the_clouds_in_the_order_of_the_file(tmp_path: Path) -> None:
    routing = Routing(catalogue_of(*ALL, toml=SMALL, folder=tmp_path))

    decision = routing.router.decide(InferenceRequest(prompt=PROSE), remaining_s=15)

    clouds = ["openai", "openai-large", "azure", "anthropic", "anthropic-large"]
    assert asked(decision) == ["silver", "silver-small", *clouds]
    assert skipped(decision) == {}


def test_with_cloud_keys_alone_the_clouds_answer() -> None:
    decision = Routing(catalogue_of("anthropic")).router.decide(InferenceRequest(prompt=PROSE), remaining_s=15)

    assert decision.tier is Tier.SILVER
    assert asked(decision) == ["anthropic", "anthropic-large"]
    assert skipped(decision)["silver"] == "not_configured"


def test_where_nothing_is_configured_every_engine_is_named_with_why() -> None:
    decision = Routing(catalogue_of()).router.decide(InferenceRequest(prompt=PROSE), remaining_s=15)

    assert decision.candidates == ()
    assert set(skipped(decision).values()) == {"not_configured"}
    assert len(decision.skipped) == 7


def test_a_studio_may_say_where_a_tier_goes_on(tmp_path: Path) -> None:
    routing = Routing(catalogue_of(*ALL, toml="[tiers.silver]\nthen = []\n", folder=tmp_path))

    assert asked(routing.router.decide(InferenceRequest(prompt=PROSE), remaining_s=15)) == ["silver"]


@pytest.mark.parametrize(
    ("request_", "spent_out", "why"),
    [
        (InferenceRequest(prompt=PROSE, cost_sensitivity="high"), frozenset({Tier.CLOUD}), "unwanted"),
        (InferenceRequest(prompt=PROSE, cost_ceiling=0.0), frozenset[Tier](), "ceiling"),
        (InferenceRequest(prompt=PROSE, cost_ceiling=9.0), frozenset({Tier.CLOUD}), "budget"),
    ],
    ids=["sensitive", "ceiling", "spent out"],
)
def test_what_costs_money_is_not_asked_where_none_may_be_spent_and_why_is_told_apart(
    request_: InferenceRequest, spent_out: frozenset[Tier], why: str
) -> None:
    routing = Routing(catalogue_of(*ALL))

    decision = routing.router.decide(request_, remaining_s=15, spent_out=spent_out)

    assert asked(decision) == ["silver"]
    assert {name for name, reason in skipped(decision).items() if reason == why} == {
        "openai",
        "openai-large",
        "azure",
        "anthropic",
        "anthropic-large",
    }


def test_a_ceiling_keeps_the_engines_that_it_pays_for_even_if_every_byte_were_a_token() -> None:
    routing = Routing(catalogue_of(*ALL))
    # 984 bytes and 16 around them: 1,000 tokens at the most, and 1,000 to write. gpt-5-mini: 0.00025 + 0.002 dollars.
    request = InferenceRequest(prompt="x" * 984, max_tokens=1_000, model="cloud", cost_ceiling=0.00225)

    assert asked(routing.router.decide(request, remaining_s=15)) == ["openai"]


def test_a_schema_and_what_a_provider_adds_for_it_count_towards_a_ceiling() -> None:
    routing = Routing(catalogue_of("openai"))
    plain = InferenceRequest(prompt="x" * 984, max_tokens=1_000, model="openai", cost_ceiling=0.00225)
    # 1,000 bytes and 1,000 to write; gpt-5-mini takes 0.25 dollars for a million tokens of a prompt.
    schema = {"description": "x" * 8_000}

    assert asked(routing.router.decide(plain, remaining_s=15)) == ["openai"]
    for request, bound in ((replace(plain, schema=schema), 10_000), (replace(plain, schema={}), 2_000)):
        assert skipped(routing.router.decide(request, remaining_s=15)) == {"openai": "ceiling"}
        enough = replace(request, cost_ceiling=(bound + 100) * 0.25e-6 + 0.002)
        assert asked(routing.router.decide(enough, remaining_s=15)) == ["openai"]


def test_an_engine_whose_breaker_is_open_is_not_asked_and_deciding_takes_nobodys_trial() -> None:
    routing, now = Routing(catalogue_of("silver", "openai")), [0.0]
    breaker = routing.engines["silver"].breaker = TierCircuitBreaker(5, 60, clock=lambda: now[0])
    routing.fails("silver")

    decision = routing.router.decide(InferenceRequest(prompt=PROSE), remaining_s=15)

    assert asked(decision) == ["openai", "openai-large"]
    assert skipped(decision)["silver"] == "open"
    now[0] = 61.0
    for _ in range(3):
        assert "silver" in asked(routing.router.decide(InferenceRequest(prompt=PROSE), remaining_s=15))
    assert breaker.enter() is not None
    assert "silver" not in asked(routing.router.decide(InferenceRequest(prompt=PROSE), remaining_s=15))


def test_an_engine_is_not_asked_for_what_it_cannot(tmp_path: Path) -> None:
    toml = "[engines.silver]\ncan_tools = false\n[engines.openai]\ncan_schema = false\n"
    routing = Routing(catalogue_of("silver", "openai", toml=toml, folder=tmp_path))

    with_tools = routing.router.decide(InferenceRequest(prompt=PROSE, tools=("search_lore",)), remaining_s=15)
    with_schema = routing.router.decide(InferenceRequest(prompt=PROSE, schema={"type": "object"}), remaining_s=15)

    assert skipped(with_tools)["silver"] == "cannot"
    assert asked(with_tools) == ["openai", "openai-large"]
    assert skipped(with_schema)["openai"] == "cannot"
    assert asked(with_schema) == ["silver", "openai-large"]


async def test_an_engine_that_would_begin_too_late_is_not_asked() -> None:
    routing = Routing(catalogue_of("silver", "openai"))
    routing.measured("silver", ttft_s=0.5)

    decision = routing.router.decide(InferenceRequest(prompt=PROSE), remaining_s=0.4)

    assert skipped(decision)["silver"] == "too_slow"
    assert asked(decision) == ["openai", "openai-large"]
    assert "silver" in asked(routing.router.decide(InferenceRequest(prompt=PROSE), remaining_s=0.6))


async def test_an_engine_that_is_only_too_slow_for_an_answer_of_full_length_is_asked_where_nobody_is_faster() -> None:
    alone, accompanied = Routing(catalogue_of("silver")), Routing(catalogue_of("silver", "openai"))
    request = InferenceRequest(prompt=PROSE, max_tokens=1_000)
    for routing in (alone, accompanied):
        routing.measured("silver", ttft_s=0.1, gap_s=0.05)

    assert asked(alone.router.decide(request, remaining_s=15)) == ["silver"]
    faster = accompanied.router.decide(request, remaining_s=15)
    assert asked(faster) == ["openai", "openai-large"]
    assert skipped(faster)["silver"] == "too_slow"


async def test_one_slow_answer_does_not_keep_an_engine_from_being_asked_for_good() -> None:
    routing = Routing(catalogue_of("gold"))
    request = InferenceRequest(prompt=PROSE, sla="real-time", max_tokens=8)
    routing.measured("gold", ttft_s=2.0)
    assert skipped(routing.router.decide(request, remaining_s=0.3))["gold"] == "too_slow"

    routing.engines["gold"].measured_at -= 6

    assert asked(routing.router.decide(request, remaining_s=0.3)) == ["gold"]


async def test_who_would_wait_beyond_the_deadline_goes_elsewhere_and_the_lanes_are_apart() -> None:
    routing = Routing(catalogue_of("silver", "openai"))
    engine = routing.engines["silver"]
    engine.lane.busy, engine.lane.service_s = engine.lane.width, 64.0

    decision = routing.router.decide(InferenceRequest(prompt=PROSE), remaining_s=1)
    background = routing.router.decide(InferenceRequest(prompt=PROSE, priority="background"), remaining_s=1)

    assert skipped(decision)["silver"] == "too_slow"
    assert asked(background)[0] == "silver"


def test_a_named_engine_has_no_fallback_and_a_named_tier_keeps_its_own() -> None:
    router = Routing(catalogue_of(*ALL)).router

    engine = router.decide(InferenceRequest(prompt=PROSE, model="anthropic-large"), remaining_s=15)
    tier = router.decide(InferenceRequest(prompt=PROSE, model="gold", max_tokens=500), remaining_s=15)

    assert (engine.tier, asked(engine)) == (Tier.CLOUD, ["anthropic-large"])
    assert (tier.tier, asked(tier)) == (Tier.GOLD, ["gold", "silver"])
    assert router.decide(InferenceRequest(prompt=PROSE, model="auto"), remaining_s=15).tier is Tier.SILVER


def test_a_role_asks_its_own_models_in_its_own_order(tmp_path: Path) -> None:
    toml = """
    [roles.chronicler]
    tier = "cloud"
    model = "claude-sonnet-4-6"
    backups = ["openai-large"]
    """
    router = Routing(catalogue_of(*ALL, toml=toml, folder=tmp_path)).router

    decision = router.decide(InferenceRequest(prompt=PROSE, role="chronicler"), remaining_s=15)

    assert (decision.tier, asked(decision)) == (Tier.CLOUD, ["anthropic-large", "openai-large"])


@pytest.mark.parametrize("what", ["model", "role"])
def test_a_model_or_role_that_there_is_not_is_an_error_that_names_those_there_are(what: str) -> None:
    router = Routing(catalogue_of("silver", "anthropic")).router
    request = InferenceRequest(prompt=PROSE, **{what: "gpt-2"})  # pyright: ignore[reportArgumentType]  # one of two names

    with pytest.raises(BadInput) as failed:
        router.decide(request, remaining_s=15)

    assert failed.value.details == {"problems": [f"{what}: unknown"]}
    assert {"model": "anthropic-large", "role": "deepseek-v3-security"}[what] in failed.value.next_step
    assert "openai" not in failed.value.next_step, "it has no address"
    assert "gpt-2" not in failed.value.message


class Answers(Serves):
    """A tier that remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Decision, float]] = []

    async def execute(
        self,
        request: InferenceRequest,  # noqa: ARG002 - the protocol's
        decision: Decision,
        *,
        asker: Asker,  # noqa: ARG002 - as above
        deadline: Deadline,
        listener: Listener | None,  # noqa: ARG002 - as above
    ) -> InferenceResult:
        self.asked.append((decision, deadline.remaining()))
        return InferenceResult(text="aye", tier=decision.tier, engine=None, model=None, source="template")


class Fell(Counts):
    """Remembers steps down."""

    def __init__(self) -> None:
        self.fell: list[tuple[str, str]] = []

    def fell_back(self, tier: str, reason: str) -> None:
        self.fell.append((tier, reason))


class Heard:
    restarts = False

    def __init__(self) -> None:
        self.told: list[Told] = []

    async def __call__(self, told: Told) -> None:
        self.told.append(told)


async def test_execute_gives_the_decision_and_the_deadline_to_the_tier_and_tells_who_listens() -> None:
    silver, heard, counts = Answers(), Heard(), Fell()
    routing = Routing(
        catalogue_of("silver", "openai"),
        {Tier.SILVER: silver},
        spent_out=lambda tenant: frozenset({Tier.CLOUD}) if tenant == "person:anna" else frozenset(),
        counts=counts,
    )

    result = await routing.router.execute(
        InferenceRequest(prompt=PROSE, latency_budget_ms=2_000), asker=ASKER, listener=heard
    )

    (decision, remaining_s) = silver.asked[0]
    assert result.text == "aye"
    assert asked(decision) == ["silver"]
    assert 0 < remaining_s <= 2
    assert [(t.kind, t.text) for t in heard.told] == [("routed", "silver: interactive")]
    assert counts.fell == [], "who was not needed is no step down"


@pytest.mark.parametrize(("sla", "budget_s"), [("real-time", 0.3), ("interactive", 15)])
async def test_a_request_without_a_budget_gets_what_its_sla_usually_gets(sla: Sla, budget_s: float) -> None:
    silver = Answers()
    routing = Routing(catalogue_of("silver"), {Tier.SILVER: silver})

    await routing.router.execute(InferenceRequest(prompt=PROSE, sla=sla), asker=ASKER)

    assert silver.asked[0][1] == pytest.approx(budget_s, abs=0.2)


async def test_a_tier_that_is_not_there_says_so_and_what_to_do_instead() -> None:
    routing = Routing(catalogue_of(*ALL), {Tier.SILVER: Answers()})

    with pytest.raises(NotConfigured) as failed:
        await routing.router.execute(InferenceRequest(prompt=PROSE, sla="async"), asker=ASKER)

    assert failed.value.message == "The bronze tier is not there yet, and this is for it: async."
    assert "sla interactive" in failed.value.next_step


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        (InferenceRequest(prompt=PROSE, max_tokens=0), "max_tokens"),
        (InferenceRequest(prompt=PROSE, max_tokens=-8), "max_tokens"),
        (InferenceRequest(prompt=PROSE, max_tokens=10**7), "max_tokens"),
        (InferenceRequest(prompt=PROSE, latency_budget_ms=-16), "latency_budget_ms"),
        (InferenceRequest(prompt=PROSE, latency_budget_ms=0), "latency_budget_ms"),
        (InferenceRequest(prompt=PROSE, latency_budget_ms=float("nan")), "latency_budget_ms"),
        (InferenceRequest(prompt=PROSE, latency_budget_ms=float("inf")), "latency_budget_ms"),
        (InferenceRequest(prompt=PROSE, cost_ceiling=-0.01), "cost_ceiling"),
        (InferenceRequest(prompt=PROSE, cost_ceiling=float("nan")), "cost_ceiling"),
        (InferenceRequest(prompt=PROSE, temperature=-1), "temperature"),
        (InferenceRequest(prompt=""), "prompt"),
        (InferenceRequest(prompt=PROSE, messages=(Message(role="user", content=PROSE),)), "prompt"),
        (InferenceRequest(prompt=PROSE, latency_budget_ms=600_001), "latency_budget_ms"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_numbers_that_cannot_be_meant_are_refused_before_anything_is_decided(
    request_: InferenceRequest, problem: str
) -> None:
    silver = Answers()
    routing = Routing(catalogue_of(*ALL), {Tier.SILVER: silver})

    with pytest.raises(BadInput) as failed:
        await routing.router.execute(request_, asker=ASKER)

    problems = failed.value.details["problems"]
    assert isinstance(problems, list)
    assert [each.split(":")[0] for each in problems] == [problem]
    assert silver.asked == []


async def test_every_number_that_cannot_be_meant_is_named() -> None:
    request = InferenceRequest(prompt=PROSE, max_tokens=-1, latency_budget_ms=-1, cost_ceiling=-1, temperature=3)

    with pytest.raises(BadInput) as failed:
        await Routing(catalogue_of()).router.execute(request, asker=ASKER)

    for name in ("max_tokens", "latency_budget_ms", "cost_ceiling", "temperature"):
        assert name in failed.value.message


async def test_a_prompt_past_every_context_is_refused_with_the_figures() -> None:
    silver = Answers()
    routing = Routing(catalogue_of("silver"), {Tier.SILVER: silver})
    request = InferenceRequest(messages=(Message(role="user", content="x" * 70_000),), max_tokens=100)

    with pytest.raises(TooLarge) as failed:
        await routing.router.execute(request, asker=ASKER)

    assert failed.value.details == {"context_tokens": 8_192, "prompt_tokens": 20_004, "max_tokens": 100}
    assert silver.asked == []


async def test_a_prompt_past_one_context_goes_to_the_engine_that_holds_it() -> None:
    silver, cloud = Answers(), Answers()
    routing = Routing(catalogue_of("silver", "openai"), {Tier.SILVER: silver, Tier.CLOUD: cloud})

    await routing.router.execute(InferenceRequest(prompt="x" * 70_000), asker=ASKER)

    assert asked(cloud.asked[0][0]) == ["openai", "openai-large"]
    assert silver.asked == [], "what only paid engines can be asked for has the cloud tier's cache"


async def test_a_prompt_that_only_an_engine_holds_that_is_down_now_is_left_to_the_tier() -> None:
    silver = Answers()
    routing = Routing(catalogue_of("silver", "anthropic"), {Tier.SILVER: silver})
    routing.fails("anthropic")
    routing.fails("anthropic-large")

    await routing.router.execute(InferenceRequest(prompt="x" * 70_000), asker=ASKER)

    assert silver.asked[0][0].skipped == (
        Fallback("silver", "too_long"),
        Fallback("silver-small", "not_configured"),
        Fallback("openai", "not_configured"),
        Fallback("openai-large", "not_configured"),
        Fallback("azure", "not_configured"),
        Fallback("anthropic", "open"),
        Fallback("anthropic-large", "open"),
    )


def test_candidates_are_made_once_and_not_for_each_request() -> None:
    routing = Routing(catalogue_of("silver"))
    first, second = (routing.router.decide(InferenceRequest(prompt=PROSE), remaining_s=1) for _ in range(2))

    assert first.candidates[0] is second.candidates[0]
    assert isinstance(first.candidates[0], Candidate)
