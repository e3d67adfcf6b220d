"""Owns a SageMaker runtime with asynchronous endpoints, on loopback: what moto has of it answers at once and wrongly (facts/tiers.md §2).

Names of headers and bounds of values come from botocore's own model of the service. Questions are queued, POSTed to a container's
/invocations, and answers written to a real S3 and published by a real SNS with boto3. On demand it throttles, breaks off, loses, is late,
or says things twice. `ledger` has what was taken and how often each was run.
"""

from __future__ import annotations

import asyncio
import functools
import json
import re
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp
import botocore.session  # pyright: ignore[reportMissingTypeStubs] - it has none
from aiohttp import web

from tests.counterparts.aws import REGION, Cloud
from tests.waiting import end_all

Trick = Literal[
    "throttled",  # refused with 429
    "unavailable",  # refused with 503
    "vanishes",  # the connection ends, and nothing was taken
    "swallowed",  # it was taken, and the connection ends
    "breaks",  # it was taken, and the answer is a 500
    "hangs",  # nothing is taken, and nothing said
    "lost",  # it runs, and nothing comes of it
    "late",  # it is run when a test says so
    "twice",  # its notice comes twice
    "unnoticed",  # without a notice
    "elsewhere",  # its answer is written where nobody asked for
]
_SIGNED = re.compile(r"AWS4-HMAC-SHA256 Credential=(\w+)/\d{8}/[\w-]+/sagemaker/aws4_request, .+")
_PATTERNED = {"EndpointName", "Filename", "S3OutputPathExtension"}
"""Others' patterns are Java's."""
EXPIRED = "EXPIRED"
"""A key whose session is over."""


@functools.cache
def _operation() -> Any:  # botocore has no types
    untyped: Any = botocore.session
    found: Any = untyped.get_session()
    return found.get_service_model("sagemaker-runtime").operation_model("InvokeEndpointAsync")


@dataclass
class Endpoint:
    """One endpoint's configuration.

    Attributes:
        container: Where its model is served, without /invocations.
        output, failures: s3://bucket/prefix.
        topic: Where notices of both kinds go.
    """

    container: str
    output: str
    failures: str | None = None
    topic: str | None = None
    concurrency: int = 4


@dataclass
class Asked:
    """One question that was taken."""

    endpoint: str
    inference_id: str
    output: str
    failure: str | None
    body: bytes | None
    input: str | None
    ttl_s: int
    timeout_s: int
    content_type: str
    trick: Trick | None
    connection: str
    ran: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class SageMakerAsyncEmulator:
    """The service, and what a test does with it.

    Attributes:
        url: Where it listens.
        endpoints: By name.
        ledger: Everything it took, in order.
        seen: How many requests came, taken or not.
        tricks: What it does with the next questions, one each.
        s3: Makes the client that reads and writes objects.
        held: Those that wait for `release` or `expire`.
    """

    def __init__(self, cloud: Cloud) -> None:
        self.url = ""
        self.endpoints: dict[str, Endpoint] = {}
        self.ledger: list[Asked] = []
        self.seen = 0
        self.tricks: deque[Trick] = deque()
        self.held: dict[str, Asked] = {}
        self._cloud = cloud
        self.s3: Callable[[], Any] = lambda: cloud.client("s3")
        self._queues: dict[str, asyncio.Queue[Asked]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = asyncio.Event()

    @property
    def runs(self) -> Mapping[str, int]:
        """How often the container worked on each output: what is billed."""
        found = Counter[str]()
        for asked in self.ledger:
            found[asked.output] += asked.ran
        return +found

    def add(self, name: str, endpoint: Endpoint) -> None:
        """Begin to serve an endpoint."""
        self.endpoints[name] = endpoint
        self._queues[name] = asyncio.Queue()
        for _ in range(endpoint.concurrency):
            self._begin(self._serve(name))

    async def release(self, asked: Asked) -> None:
        """Run one that was held, to its end."""
        del self.held[asked.inference_id]
        await self._run(asked)

    async def expire(self, asked: Asked) -> None:
        """Its RequestTTLSeconds are over: it is never run."""
        del self.held[asked.inference_id]
        await self._fail(asked, "ClientError: The request was in the queue for longer than its RequestTTLSeconds.")

    async def invoke(self, request: web.Request) -> web.StreamResponse:
        """InvokeEndpointAsync."""
        self.seen += 1
        body, trick = await request.read(), self.tricks.popleft() if self.tricks else None
        if (refusal := _unsigned(request) or _early(trick)) is not None:
            return refusal
        if trick in {"vanishes", "hangs"}:
            return await self._ended(request, waits=trick == "hangs")
        given, problem = _parsed(request, body)
        endpoint = self.endpoints.get(given["EndpointName"])
        if problem is None and endpoint is None:
            problem = f"Endpoint {given['EndpointName']} of account 123456789012 not found."
        if problem is not None or endpoint is None:
            return _error(400, "ValidationError", problem or "")
        asked = self._taken(given, endpoint, body, trick, request.headers.get("connection", ""))
        if trick == "swallowed":
            return await self._ended(request, waits=False)
        if trick == "breaks":
            return _error(500, "InternalFailure", "An internal failure occurred.")
        places = {"OutputLocation": asked.output} | ({"FailureLocation": asked.failure} if asked.failure else {})
        headers = {_header(_operation().output_shape, name): place for name, place in places.items()}
        return web.json_response({"InferenceId": asked.inference_id}, status=202, headers=headers)

    def _taken(
        self, given: dict[str, Any], endpoint: Endpoint, body: bytes, trick: Trick | None, connection: str
    ) -> Asked:
        name = "/".join(filter(None, (given.get("S3OutputPathExtension", "").strip("/"), given["Filename"])))
        if trick == "elsewhere":
            name = f"elsewhere/{given['Filename']}.out"
        asked = Asked(
            endpoint=given["EndpointName"],
            inference_id=given["InferenceId"],
            output=f"{endpoint.output}/{name}",
            failure=None if endpoint.failures is None else f"{endpoint.failures}/{name}-error.out",
            body=body or None,
            input=given.get("InputLocation"),
            ttl_s=given.get("RequestTTLSeconds", 21_600),
            timeout_s=given.get("InvocationTimeoutSeconds", 900),
            content_type=given["ContentType"],
            trick=trick,
            connection=connection,
        )
        self.ledger.append(asked)
        if trick == "late":
            self.held[asked.inference_id] = asked
        else:
            self._queues[asked.endpoint].put_nowait(asked)
        return asked

    async def _ended(self, request: web.Request, *, waits: bool) -> web.StreamResponse:
        if waits:
            await self._open.wait()
        if request.transport is not None:
            request.transport.abort()
        raise asyncio.CancelledError

    async def _serve(self, name: str) -> None:
        while True:
            await self._run(await self._queues[name].get())

    async def _run(self, asked: Asked) -> None:
        asked.ran += 1
        endpoint = self.endpoints[asked.endpoint]
        try:
            async with asyncio.timeout(asked.timeout_s), aiohttp.ClientSession() as session:
                body = asked.body if asked.input is None else await asyncio.to_thread(self.read, asked.input or "")
                answer = await session.post(
                    f"{endpoint.container}/invocations", data=body, headers={"content-type": asked.content_type}
                )
                found, status = await answer.read(), answer.status
        except TimeoutError:
            await self._fail(
                asked, "ModelError: Your invocation timed out while waiting for a response from container."
            )
            return
        if asked.trick == "lost":
            asked.ended.set()
            return
        if status != 200:
            said = f'Received server error ({status}) from model with message "{found.decode()}".'
            await self._fail(asked, f"ModelError: {said}")
            return
        await asyncio.to_thread(self._put, asked.output, found)
        await self._notify(asked, {"invocationStatus": "Completed"}, {"outputLocation": asked.output})

    async def _fail(self, asked: Asked, why: str) -> None:
        if asked.failure is not None:
            await asyncio.to_thread(self._put, asked.failure, why.encode())
        await self._notify(asked, {"invocationStatus": "Failed", "failureReason": why}, None)

    async def _notify(self, asked: Asked, what: dict[str, str], response: dict[str, str] | None) -> None:
        """The fields are those of AWS' page async-inference-check-predictions; a failure's has no output."""
        topic = self.endpoints[asked.endpoint].topic
        message: dict[str, Any] = {
            "awsRegion": REGION,
            "eventTime": "2026-11-22T17:00:00.608Z",
            "receivedTime": "2026-11-22T17:00:00.455Z",
            **what,
            "requestParameters": {"contentType": asked.content_type, "endpointName": asked.endpoint}
            | ({} if asked.input is None else {"inputLocation": asked.input}),
            "inferenceId": asked.inference_id,
            "eventVersion": "1.0",
            "eventSource": "aws:sagemaker",
            "eventName": "InferenceResult",
        }
        if response is not None:
            message["responseParameters"] = {"contentType": "application/json", **response}
        if topic is not None and asked.trick != "unnoticed":
            for _ in range(2 if asked.trick == "twice" else 1):
                await asyncio.to_thread(self._publish, topic, json.dumps(message))
        asked.ended.set()

    def _publish(self, topic: str, message: str) -> None:
        self._cloud.client("sns").publish(TopicArn=topic, Message=message)

    def _put(self, place: str, body: bytes) -> None:
        bucket, key = _parts(place)
        self.s3().put_object(Bucket=bucket, Key=key, Body=body, ContentType="application/json")

    def read(self, place: str) -> bytes:
        """An object, as it lies there; blocking."""
        bucket, key = _parts(place)
        found: bytes = self.s3().get_object(Bucket=bucket, Key=key)["Body"].read()
        return found

    def _begin(self, work: Any) -> None:  # a coroutine
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End everything."""
        self._open.set()
        for fault in await end_all(tuple(self._tasks)):
            raise fault


@asynccontextmanager
async def emulator(cloud: Cloud) -> AsyncGenerator[SageMakerAsyncEmulator]:
    """The service, for as long as it is used; it writes to this cloud."""
    made = SageMakerAsyncEmulator(cloud)
    app = web.Application(client_max_size=8 * 1024 * 1024)
    app.router.add_post("/endpoints/{name}/async-invocations", made.invoke)
    async with _listening(app) as made.url:
        try:
            yield made
        finally:
            await made.close()


@dataclass
class Container:
    """What an endpoint runs: vLLM's POST /invocations, with answers that a test gives.

    Attributes:
        asked: The questions, in order.
        answers: What it says to the next questions; then always the same.
        status: Of its answers.
        gate: Answers wait until it is set.
    """

    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    answers: deque[dict[str, Any] | str] = field(default_factory=deque[dict[str, Any] | str])
    status: int = 200
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def invocations(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(await request.json())
        await self.gate.wait()
        found = self.answers.popleft() if self.answers else said("Kaya stands at the well.")
        text = found if isinstance(found, str) else json.dumps(found)
        return web.Response(text=text, status=self.status, content_type="application/json")


@asynccontextmanager
async def container(made: Container | None = None) -> AsyncGenerator[Container]:
    """A container, or this one, for as long as it is used."""
    made = made or Container()
    made.gate.set()
    app = web.Application(client_max_size=8 * 1024 * 1024)
    app.router.add_post("/invocations", made.invocations)
    async with _listening(app) as made.url:
        try:
            yield made
        finally:
            made.gate.set()


def said(text: str, *, finish: str = "stop", prompt: int = 12, completion: int = 7, **message: Any) -> dict[str, Any]:
    """A whole answer in the chat form."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "expert",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
        ],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
    }


@asynccontextmanager
async def _listening(app: web.Application) -> AsyncGenerator[str]:
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def _parts(place: str) -> tuple[str, str]:
    bucket, _, key = place.removeprefix("s3://").partition("/")
    return bucket, key


def _header(shape: Any, name: str) -> str:  # botocore has no types
    found: str = shape.members[name].serialization["name"]
    return found


def _parsed(request: web.Request, body: bytes) -> tuple[dict[str, Any], str | None]:
    """The parameters by their names in the model, and the first that it does not allow."""
    shape, given = _operation().input_shape, dict[str, Any](EndpointName=request.match_info["name"])
    headers = {
        name: member for name, member in shape.members.items() if member.serialization.get("location") == "header"
    }
    for name, member in headers.items():
        text = request.headers.get(member.serialization["name"])
        if text is not None:
            given[name] = int(text) if member.type_name == "integer" else text
    known = {member.serialization["name"].lower() for member in headers.values()}
    strange = [
        name for name in request.headers if name.lower().startswith("x-amzn-sagemaker") and name.lower() not in known
    ]
    if strange:
        return given, f"{strange[0]} is no header of this operation."
    for name, value in given.items():
        member = shape.members[name]
        size = value if isinstance(value, int) else len(value)
        if not member.metadata.get("min", 0) <= size <= member.metadata.get("max", size):
            return given, f"1 validation error detected: Value at '{name}' failed to satisfy constraint."
        pattern = member.metadata.get("pattern") if name in _PATTERNED else None
        if pattern is not None and not re.fullmatch(pattern, str(value)):
            return given, f"1 validation error detected: Value at '{name}' failed to satisfy its pattern."
    if bool(body) == ("InputLocation" in given):
        return given, "Exactly one of Body and InputLocation must be given."
    if len(body) > shape.members["Body"].metadata["max"]:
        return given, "Body is longer than 128000 bytes."
    return given, None


def _unsigned(request: web.Request) -> web.Response | None:
    found = _SIGNED.fullmatch(request.headers.get("authorization", ""))
    if found is None:
        return _error(403, "MissingAuthenticationTokenException", "Missing Authentication Token")
    if found[1] == EXPIRED:
        return _error(403, "ExpiredTokenException", "The security token included in the request is expired")
    return None


def _early(trick: Trick | None) -> web.Response | None:
    if trick == "throttled":
        return _error(429, "ThrottlingException", "Rate exceeded")
    if trick == "unavailable":
        return _error(503, "ServiceUnavailable", "The service is unavailable. Try your call again.")
    return None


def _error(status: int, code: str, message: str) -> web.Response:
    """AWS' JSON form of errors."""
    return web.json_response({"Message": message}, status=status, headers={"x-amzn-ErrorType": code})
