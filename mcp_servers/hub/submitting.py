"""The hub's tools submit_job and submit_jobs: work of minutes for an expert model, asked for at once and answered with its id."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Protocol, Self

import orjson
from pydantic import Field, model_validator

from body_broker.calls import Arguments, Call, Caller, Json, Result, Tool
from body_broker.errors import BadInput
from body_broker.storage.postgres import Pool
from body_broker.work import queue
from body_broker.work.model import Origin, State
from mcp_servers.hub.generating import Name, Short, Tokens, Turn, budget_facts, explain_budget, message_of
from mcp_servers.hub.inferring import Inferring
from tiers.bronze.jobs import MANY_MAX, Jobs
from tiers.bronze.model import SECONDS_MAX, Assignment, Budget, Finished, Priority, Shaped
from tiers.catalogue import Catalogue
from tiers.model import InferenceRequest, Message, Sensitivity

KIND = "expert"
NEEDS = "BODY_BROKER_BRONZE_URL"
FOLLOW_UPS_MAX = 50
_TITLE_MAX, _NAMED_MAX = 80, 20
_WITHIN = frozenset({"within_budget"})
_DEFAULT = Budget()
IdempotencyKey = Annotated[
    str | None, Field(min_length=1, max_length=200, description="With the same arguments it is the same job again.")
]


class HasExperts(Protocol):
    """What these tools need."""

    @property
    def pool(self) -> Pool:
        """The stores."""
        ...

    @property
    def inferring(self) -> Inferring:
        """The tiers of this process."""
        ...

    @property
    def jobs(self) -> Jobs:
        """The experts' jobs."""
        ...

    def served(self) -> frozenset[str]:
        """The names of the tools that this hub has now."""
        ...


class JobBudget(Arguments):
    """What one job may use at most."""

    tokens: Annotated[int, Field(ge=1, le=100_000_000)] = _DEFAULT.tokens
    calls: Annotated[int, Field(ge=0, le=1_000, description="Of tools.")] = _DEFAULT.calls
    usd: Annotated[float | None, Field(ge=0, le=10_000)] = None
    seconds: Annotated[float, Field(ge=1, le=SECONDS_MAX, description="To its end, waiting included.")] = (
        _DEFAULT.seconds
    )


class JobWish(Arguments):
    """What an expert is to do."""

    # How long they may be is for the guard and the store to say: both say that it is too large.
    prompt: Annotated[str | None, Field(min_length=1, description="Or `messages`.")] = None
    messages: Annotated[list[Turn], Field(default_factory=list[Turn], max_length=1_000)]
    follow_ups: Annotated[
        list[Annotated[str, Field(min_length=1)]],
        Field(default_factory=list[str], max_length=FOLLOW_UPS_MAX, description="Said after each answer, one by one."),
    ]
    title: Annotated[str | None, Field(min_length=1, max_length=_TITLE_MAX)] = None
    role: Annotated[Name | None, Field(description="Of models.toml.")] = None
    model: Annotated[Name | None, Field(description="An engine of hub://models.")] = None
    max_tokens: Annotated[Tokens, Field(description="Of each answer.")] = 2_000
    tools: Annotated[
        list[Name] | None, Field(max_length=64, description="Tools of this hub, or groups; default: the role's.")
    ] = None
    response_schema: dict[str, Json] | None = None
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    seed: Annotated[int | None, Field(ge=0, le=2**32 - 1)] = None
    stop: Annotated[list[Short], Field(default_factory=list[str], max_length=4)]
    cost_sensitivity: Sensitivity = "normal"
    budget: JobBudget = JobBudget()

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if (self.prompt is None) == (not self.messages):
            raise ValueError("give either prompt or messages")
        return self

    def said(self) -> tuple[Message, ...]:
        """The conversation that the first answer continues."""
        return tuple(message_of(turn) for turn in self.messages) or (Message(role="user", content=self.prompt or ""),)

    def brings_outside(self) -> bool:
        """Whether it carries what tools of the caller's gave: nobody here knows where that is from."""
        return any(turn.role == "tool" for turn in self.messages)

    def request(self, catalogue: Catalogue) -> InferenceRequest:
        """The same as the router takes it, to find out who could be asked.

        Raises:
            BadInput: There is no such model or role.
        """
        return InferenceRequest(
            messages=(*self.said(), *(Message(role="user", content=each) for each in self.follow_ups)),
            sla="async",
            max_tokens=self.max_tokens,
            schema=self.response_schema,
            cost_sensitivity=self.cost_sensitivity,
            model=engine_named(self.model, self.role, catalogue) or "bronze",
        )

    def assignment(self, catalogue: Catalogue, *, outside: bool) -> Assignment:
        """The same as the input of a job.

        Args:
            catalogue: Engines and roles.
            outside: Whether whoever asks has read text from outside.

        Raises:
            BadInput: There is no such model or role.
        """
        said, budget = self.said(), self.budget
        return Assignment(
            kind=KIND,
            title=self.title or _title(said),
            messages=said,
            follow_ups=tuple(self.follow_ups),
            role=self.role,
            model=engine_named(self.model, self.role, catalogue),
            max_tokens=self.max_tokens,
            tools=None if self.tools is None else tuple(self.tools),
            schema=self.response_schema,
            temperature=self.temperature,
            seed=self.seed,
            stop=tuple(self.stop),
            cost_sensitivity=self.cost_sensitivity,
            budget=Budget(tokens=budget.tokens, calls=budget.calls, usd=budget.usd, seconds=budget.seconds),
            outside=outside or self.brings_outside(),
        )


class SubmitJob(JobWish):
    """One job."""

    priority: Priority = "normal"
    idempotency_key: IdempotencyKey = None


class SubmitJobs(Arguments):
    """Several jobs, all or none."""

    jobs: Annotated[list[JobWish], Field(min_length=1, max_length=MANY_MAX)]
    priority: Priority = "normal"
    idempotency_key: IdempotencyKey = None


class Submitted(Result):
    """A job that was asked for; `result` is there where it is told as a task."""

    job_id: str
    status: State
    queue_position: int | None = Field(default=None, description="Jobs that begin before it.")
    result: Json = None

    def text(self) -> str:
        """One line."""
        if self.result is not None:
            return orjson.dumps(self.result).decode()
        place = "" if self.queue_position is None else f", {self.queue_position} before it"
        return (
            f"{self.job_id} is {self.status}{place}. get_job(id={self.job_id}) says how it stands, and has its result."
        )

    def handle(self) -> str | None:
        """The job."""
        return None if self.result is not None else self.job_id


class SubmittedJobs(Result):
    """The jobs, in the order in which they were given."""

    jobs: list[Submitted]

    def text(self) -> str:
        """A line for each."""
        return "\n".join(job.text() for job in self.jobs)


async def submit_job(arguments: SubmitJob, call: Call, services: HasExperts) -> Submitted:
    """A new job, or the one that was asked for under the same key."""
    assignment = await _assignment(arguments, call, services)
    job_id = await services.jobs.submit(
        assignment,
        Origin.of(call),
        priority=arguments.priority,
        key=call.key,
        idempotency_key=arguments.idempotency_key,
    )
    return await _submitted(services.pool, job_id, call.caller.asker)


async def submit_jobs(arguments: SubmitJobs, call: Call, services: HasExperts) -> SubmittedJobs:
    """New jobs, all or none, or those that were asked for under the same key."""
    assignments = [await _assignment(wish, call, services) for wish in arguments.jobs]
    job_ids = await services.jobs.submit_many(
        assignments,
        Origin.of(call),
        priority=arguments.priority,
        key=call.key,
        idempotency_key=arguments.idempotency_key,
    )
    return SubmittedJobs(jobs=[await _submitted(services.pool, each, call.caller.asker) for each in job_ids])


async def _assignment(wish: JobWish, call: Call, services: HasExperts) -> Assignment:
    if wish.response_schema is not None:  # reading one may take half a second
        await asyncio.to_thread(_check_schema, wish.response_schema)
    _check_tools(wish.tools or (), services)
    return wish.assignment(services.inferring.catalogue, outside=call.tainted)


def _check_tools(names: Sequence[str], services: HasExperts) -> None:
    """A name that nothing has would be a tool that the expert silently lacks."""
    groups = services.inferring.catalogue.tool_groups
    known = services.served().union(groups)
    unknown = [f"tools.{place}" for place, name in enumerate(names) if name not in known]
    if unknown:
        raise BadInput(
            f"No tool of this hub, and no group of tools, has the name given as {', '.join(unknown[:_NAMED_MAX])}.",
            next_step=f"tools/list has the tools; groups are: {', '.join(groups)}.",
            details={"problems": [f"{place}: unknown" for place in unknown[:_NAMED_MAX]]},
        )


def _check_schema(schema: dict[str, Json]) -> None:
    from tiers.accepting import fitting  # noqa: PLC0415 - imports jsonschema, which nothing else needs before there are jobs

    fitting(schema, "response_schema")


async def _submitted(pool: Pool, job_id: str, owner: str) -> Submitted:
    if (position := await queue.position(pool, job_id)) is not None:
        return Submitted(job_id=job_id, status="queued", queue_position=position)
    # A worker was quicker, or it was asked for under this key before.
    return Submitted(job_id=job_id, status=(await queue.get(pool, job_id, owner=owner)).state)


async def submit_facts(arguments: SubmitJob, caller: Caller, services: HasExperts) -> frozenset[str]:
    """Whether the caller's budget has room for it."""
    return await _within([arguments], caller, services)


async def submit_many_facts(arguments: SubmitJobs, caller: Caller, services: HasExperts) -> frozenset[str]:
    """Whether the caller's budget has room for each of them."""
    return await _within(arguments.jobs, caller, services)


async def _within(wishes: list[JobWish] | list[SubmitJob], caller: Caller, services: HasExperts) -> frozenset[str]:
    inferring = services.inferring
    for wish in wishes:
        if not await budget_facts(wish.request(inferring.catalogue), caller, inferring):
            return frozenset()
    return _WITHIN


def engine_named(model: str | None, role: str | None, catalogue: Catalogue) -> str | None:
    """The engine that a job names, by its own name or by what it calls its model; None where it leaves it to the role or the tier.

    Args:
        model: As somebody named it.
        role: The role of models.toml that they named.
        catalogue: Engines and roles.

    Raises:
        BadInput: There is no such model or role, or the model's engine has no address.
    """
    if role is not None and role not in catalogue.roles:
        raise _unknown("role", list(catalogue.roles))
    if model is None or model == "auto":
        return None
    there = [spec for spec in catalogue.engines.values() if spec.url is not None]
    for spec in sorted(there, key=lambda spec: spec.name != model):
        if model in {spec.name, spec.model, *spec.variants}:
            return spec.name
    raise _unknown("model", [spec.name for spec in there])


def _unknown(what: str, known: list[str]) -> BadInput:
    listed = f"Use one of: {', '.join(known[:_NAMED_MAX])}." if known else "Leave it out: none is configured."
    return BadInput(
        f"There is no {what} of that name here.", next_step=listed, details={"problems": [f"{what}: unknown"]}
    )


def _title(said: tuple[Message, ...]) -> str:
    """The first words of what is asked."""
    asked = next((message.content for message in said if message.role == "user" and message.content.strip()), "")
    line = " ".join(asked[: 4 * _TITLE_MAX].split())
    return line if len(line) <= _TITLE_MAX else f"{line[: _TITLE_MAX - 1]}…"


async def shape(finished: Finished) -> Shaped:
    """The result of an expert's job: its answers as they are; the last one is what most will read."""
    answers = list(finished.answers)
    return Shaped(
        body={"content": answers[-1], "answers": answers},
        text=f"# {finished.assignment.title}\n\n" + "\n\n---\n\n".join(answers),
    )


TOOLS = (
    Tool(
        name="submit_job",
        group="draft",
        modifiers=frozenset({"spend", "long_running"}),
        run=submit_job,
        title="Submit a job",
        description=(
            "Have an expert model work for minutes, with tools where named; answers at once with a job id. For short answers "
            "generate is cheaper."
        ),
        effect="repeatable",
        needs=NEEDS,
        open_world=True,
        establishes=submit_facts,
        explains=explain_budget,
        work=KIND,
    ),
    Tool(
        name="submit_jobs",
        group="draft",
        modifiers=frozenset({"spend", "long_running"}),
        run=submit_jobs,
        title="Submit several jobs",
        description="Several jobs as of submit_job: all are accepted, or none is.",
        effect="repeatable",
        needs=NEEDS,
        profile="all",
        open_world=True,
        establishes=submit_many_facts,
        explains=explain_budget,
    ),
)
