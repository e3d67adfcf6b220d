"""The hub's own server: who am I, and the tools about jobs, approvals and models, with what all of them need."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from approvals.desk import Desk
from body_broker.calls import Arguments, Call, Resource, ResourceText, Result, Room, Tool
from body_broker.storage.postgres import Pool
from mcp_servers.hub.approval_tools import TOOLS as APPROVAL_TOOLS
from mcp_servers.hub.generating import TOOLS as GENERATING_TOOLS
from mcp_servers.hub.inferring import Inferring
from mcp_servers.hub.job_tools import TOOLS as JOB_TOOLS
from mcp_servers.hub.metrics import Metrics
from mcp_servers.hub.models_shown import RESOURCES as MODEL_RESOURCES
from mcp_servers.hub.submitting import TOOLS as SUBMITTING_TOOLS
from mcp_servers.hub.talking import TOOLS as TALKING_TOOLS
from mcp_servers.hub.upstream_tools import TOOLS as UPSTREAM_TOOLS
from mcp_servers.hub.upstreaming import Upstreams
from tiers.bronze.jobs import Jobs
from tiers.bronze.results import Results


@dataclass(frozen=True, slots=True)
class HubServices:
    """What the hub's own tools need; `upstreams` are the servers of others, and what is served now."""

    pool: Pool
    metrics: Metrics
    desk: Desk
    inferring: Inferring
    jobs: Jobs
    results: Results
    upstreams: Upstreams

    def served(self) -> frozenset[str]:
        """The names of the tools that this hub has now."""
        return self.upstreams.served()


class Nothing(Arguments):
    """No arguments."""


class Identity(Result):
    """Who the hub takes the caller for."""

    chain: list[str] = Field(description="Who asked first, then who acts for them.")
    roles: dict[str, list[str]] = Field(description="Roles of the people in the chain.")
    tainted: bool = Field(description="Whether this session has read text from outside: some calls then need a person.")
    expires_at: float | None = Field(description="Unix seconds at which the token ends.")

    def text(self) -> str:
        """One line."""
        roles = ", ".join(r for names in self.roles.values() for r in names) or "no roles"
        return f"You are {' acting for '.join(reversed(self.chain))} ({roles}); this session is {'tainted' if self.tainted else 'clean'}."


async def whoami(_arguments: Nothing, call: Call, _services: HubServices) -> Identity:
    """The caller as the gate sees it."""
    caller = call.caller
    return Identity(
        chain=list(caller.chain),
        roles={p: sorted(r) for p, r in caller.roles.items() if r},
        tainted=call.tainted,
        expires_at=caller.expires_at,
    )


async def read_metrics(_arguments: Nothing, _call: Call, services: HubServices) -> ResourceText:
    """This hub's metrics in Prometheus' text form."""
    await services.metrics.read(services.pool)
    return ResourceText(content=services.metrics.text(), from_outside=False)


ROOM = Room(
    name="hub",
    title="Hub",
    description="Who you are to the hub, your jobs, and what people were asked for you.",
    tools=(
        Tool(
            name="whoami",
            group="own",
            run=whoami,
            title="Who am I",
            description="Who the hub takes you for: identity chain, roles, whether this session is tainted by text from outside.",
        ),
        *JOB_TOOLS,
        *APPROVAL_TOOLS,
        *GENERATING_TOOLS,
        *SUBMITTING_TOOLS,
        *TALKING_TOOLS,
        *UPSTREAM_TOOLS,
    ),
    resources=(
        Resource(
            name="hub_metrics",
            group="admin_read",
            run=read_metrics,
            title="Hub metrics",
            description="This hub's metrics in Prometheus' text form; also served at /metrics.",
            uri="hub://metrics",
        ),
        *MODEL_RESOURCES,
    ),
)
