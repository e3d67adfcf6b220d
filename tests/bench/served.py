"""What is measured, each in a process of its own: `python -m tests.bench.served hub|world|asking|experts|traced|fastmcp DATA_DIR [ENGINE | COLLECTOR]`; prints one line of JSON when ready."""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
from pathlib import Path
from typing import Annotated, Any

from body_broker.calls import Room
from tests.bench.rows import GATED, room, rows

TOOLS = 51
FAMILIES_MIN = 20
"""Rows of the benchmark itself, however many the hub has: what is called is among them."""


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


async def hub(
    data_dir: Path,
    *,
    in_a_world: bool = False,
    asking: bool = False,
    experts: str | None = None,
    collector: str | None = None,
) -> None:
    """The hub as shipped, its own rooms filled up to 51 listed tools; limits wide enough not to be what is measured."""
    from body_broker.settings import load_settings
    from mcp_servers.hub.rooms import ROOMS
    from mcp_servers.hub.runtime import open_runtime, profiled
    from mcp_servers.hub.serve import Address, freeze_start_up, listening
    from tests.bench.world import fill

    tools = "all" if in_a_world else "core"
    wide: dict[str, object] = {"rate_per_s": 50_000, "concurrency_max": 256, "approvals_open_max": 10_000}
    if experts:
        wide |= {"bronze_url": experts, "bronze_model": "expert", "bronze_open_max": 100_000}
    if collector:
        wide["otlp_url"] = collector
    settings = load_settings({}, None, data_dir=data_dir, tools=tools, **wide)
    ours = sum(len(r.tools) for r in profiled(ROOMS, "core"))
    rooms: tuple[Room, ...] = (*ROOMS, room(max(TOOLS - ours, FAMILIES_MIN)), *([GATED] if asking else []))
    async with open_runtime(settings, rooms) as runtime:
        if in_a_world:
            await fill(runtime.stores.pool)
            await runtime.services.world.check()
        async with listening(runtime, Address("127.0.0.1", 0)) as served:
            freeze_start_up()
            issued = {who: await runtime.tokens.issue(f"tier:{who}", ttl_s=7200) for who in ("silver", "bronze")}
            say(url=served.url, tokens={who: found.token for who, found in issued.items()}, pid=os.getpid())
            await served.serving


def fastmcp_baseline() -> None:
    """FastMCP with the same rows, its lookup fix and a JWT check; no policy, no audit, no limits."""
    os.environ["FASTMCP_CHECK_FOR_UPDATES"] = "off"  # noqa: TID251 - another library's switch, in a process of its own
    import uvicorn
    from fastmcp import FastMCP
    from fastmcp.server.auth import JWTVerifier
    from fastmcp.server.auth.providers.jwt import RSAKeyPair

    pair = RSAKeyPair.generate()
    server = FastMCP(
        "baseline", auth=JWTVerifier(public_key=pair.public_key, issuer="hub", audience="hub"), mask_error_details=True
    )
    for tool in rows(TOOLS):
        server.tool(plain_function(tool))
    server._mcp_server.get_tool_input_schema = no_schema  # pyright: ignore[reportPrivateUsage] - the known fix
    app = server.http_app(stateless_http=True, json_response=True)
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    token = pair.create_token(subject="silver", issuer="hub", audience="hub", expires_in_seconds=7200)
    say(
        url=f"http://127.0.0.1:{bound.getsockname()[1]}/mcp", tokens={"silver": token, "bronze": token}, pid=os.getpid()
    )
    config = uvicorn.Config(app, log_level="critical", access_log=False, loop="uvloop", http="httptools")
    uvicorn.Server(config).run(sockets=[bound])


def no_schema(_name: str) -> None:
    return None


def plain_function(tool: Any) -> Any:  # FastMCP reads a function's signature, so one is written for each row
    fields = tool.arguments.model_fields
    names: dict[str, Any] = {"R": tool.result, "run": tool.run, "M": tool.arguments}
    parameters: list[str] = []
    for name, found in fields.items():
        names[f"A_{name}"], names[f"D_{name}"] = Annotated[found.annotation, found], found.default
        if not found.is_required():
            names[f"A_{name}"] = found.annotation
        parameters.append(f"{name}: A_{name}" + ("" if found.is_required() else f" = D_{name}"))
    given = ", ".join(f"{name}={name}" for name in fields)
    source = (
        f"async def {tool.name}({', '.join(sorted(parameters, key=lambda p: '=' in p))}) -> R:\n"
        f"    {tool.description!r}\n    return await run(M.model_construct({given}), None, None)"
    )
    exec(source, names)  # noqa: S102 - our own rows
    return names[tool.name]


if __name__ == "__main__":
    if sys.argv[1] in {"hub", "world", "asking", "experts", "traced"}:
        import uvloop

        what, other = sys.argv[1], sys.argv[3] if len(sys.argv) > 3 else None
        engine, collector = (other if what == each else None for each in ("experts", "traced"))
        uvloop.run(
            hub(
                Path(sys.argv[2]),
                in_a_world=what == "world",
                asking=what == "asking",
                experts=engine,
                collector=collector,
            )
        )
    else:
        fastmcp_baseline()
