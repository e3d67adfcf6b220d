"""Owns talking to AWS for this engine: boto3's clients, one of each in a process, made when first used and called in threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from body_broker.telemetry import get_logger
from body_broker.threads import Threads
from body_broker.work.model import JSON_BYTES_MAX
from tiers.bronze.sagemaker.places import EXTENSION, Asking, Place

if TYPE_CHECKING:
    from tiers.bronze.sagemaker.faults import AwsFault

T = TypeVar("T")
log = get_logger(__name__)

INLINE_BYTES_MAX = 128_000
"""What InvokeEndpointAsync takes as its Body; longer questions go by S3."""
BEGUN_WITHIN_S = 30.0
"""An invocation that has not been sent by then is not sent any more: somebody else may believe by now that it was."""
SENT_WITHIN_S = 15.0
"""How long sending it can take beyond that: to connect, and to be answered."""
ANSWER_BYTES_MAX = JSON_BYTES_MAX
"""A longer one could not be recorded, and reading it would keep everything else in the process waiting."""
_CONNECT_S, _READ_S = 3, 10
_METADATA_S = 1
WAIT_S = 20
"""How long an empty queue is listened to at once: SQS' own most."""
_ATTEMPTS = 3
_CONNECTIONS = 16
_NOTICES_MAX = 10


@dataclass(frozen=True, slots=True)
class Taken:
    """What an endpoint says of a question that it took: where its answer will be, or its failure; None where it does not say."""

    output: str | None
    failure: str | None


@dataclass(frozen=True, slots=True)
class Received:
    """A message of a queue: what it says, and what deletes it."""

    body: str
    receipt: str


class SageMakerClient:
    """AWS as one process sees it. Credentials are those that boto3 finds.

    Args:
        region: None takes boto3's own default.
        endpoint_url: Another address for every service.
        runtime_url: Another address for the endpoint's invocations alone; `s3_url` and `sqs_url` the same for these.
    """

    def __init__(
        self,
        *,
        region: str | None = None,
        endpoint_url: str | None = None,
        runtime_url: str | None = None,
        s3_url: str | None = None,
        sqs_url: str | None = None,
    ) -> None:
        self._region = region
        self._urls = {
            "sagemaker-runtime": runtime_url or endpoint_url,
            "s3": s3_url or endpoint_url,
            "sqs": sqs_url or endpoint_url,
        }
        self._threads = Threads(_CONNECTIONS, name="SageMaker")
        self._lock = threading.Lock()
        self._session: Any = None  # boto3 has no types
        self._clients: dict[str, Any] = {}

    def close(self) -> None:
        """Ask nothing more; what is under way is not waited for."""
        self._threads.close()

    async def invoke(
        self, endpoint: str, asking: Asking, given: bytes | Place, *, ttl_s: int, timeout_s: int, begun_at: float
    ) -> Taken:
        """Have a question answered some time; never sent twice by this.

        Args:
            endpoint: Its name.
            asking: Which asking of which question it is.
            given: The question, or where it lies.
            ttl_s: How long it may wait there.
            timeout_s: How long it may be worked on.
            begun_at: When it was written down that it is sent now, by time.monotonic.

        Raises:
            AwsFault: It was refused, or nobody knows.
        """
        asked: dict[str, Any] = {
            "EndpointName": endpoint,
            "ContentType": "application/json",
            "Accept": "application/json",
            "InferenceId": asking.inference_id,
            "S3OutputPathExtension": EXTENSION,
            "Filename": asking.filename,
            "RequestTTLSeconds": ttl_s,
            "InvocationTimeoutSeconds": timeout_s,
        } | ({"InputLocation": str(given)} if isinstance(given, Place) else {"Body": given})

        def invoked() -> Taken:
            client = self._client("sagemaker-runtime")
            if time.monotonic() > begun_at + BEGUN_WITHIN_S:
                raise _too_late()
            said: Any = client.invoke_endpoint_async(**asked)
            return Taken(said.get("OutputLocation"), said.get("FailureLocation"))

        return await self._in_thread(invoked)

    async def is_there(self, place: Place) -> bool:
        """Whether there is such an object.

        Raises:
            AwsFault: S3 does not say.
        """

        def looked() -> bool:
            said = self._object(
                place
            )  # no HEAD: its refusals have no words, so that a missing bucket is like a missing object
            if said is not None:
                said["Body"].close()
            return said is not None

        return await self._in_thread(looked)

    async def read(self, place: Place) -> bytes | None:
        """An object, as far as its first ANSWER_BYTES_MAX bytes and one more; None where there is none.

        Raises:
            AwsFault: S3 does not say, or it cannot be read.
        """

        def got() -> bytes | None:
            said = self._object(place)
            if said is None:
                return None
            with said["Body"] as body:
                found: bytes = body.read(ANSWER_BYTES_MAX + 1)
            return found

        return await self._in_thread(got)

    async def put(self, place: Place, body: bytes) -> None:
        """Write a JSON object.

        Raises:
            AwsFault: It cannot be written.
        """
        await self._in_thread(
            lambda: self._client("s3").put_object(
                Bucket=place.bucket, Key=place.key, Body=body, ContentType="application/json"
            )
        )

    async def receive(self, queue_url: str, *, wait_s: int = WAIT_S) -> Sequence[Received]:
        """Messages of a queue, as soon as there are any; none after this time (SQS' long poll).

        Raises:
            AwsFault: The queue cannot be read.
        """

        def received() -> Sequence[Received]:
            said: Any = self._client("sqs").receive_message(
                QueueUrl=queue_url, MaxNumberOfMessages=_NOTICES_MAX, WaitTimeSeconds=wait_s
            )
            return [Received(each["Body"], each["ReceiptHandle"]) for each in said.get("Messages", ())]

        return await self._in_thread(received)

    async def delete(self, queue_url: str, receipts: Sequence[str]) -> None:
        """Delete messages that are done with; one that cannot be deleted comes again.

        Raises:
            AwsFault: The queue cannot be written.
        """
        entries = [{"Id": str(number), "ReceiptHandle": each} for number, each in enumerate(receipts)]
        await self._in_thread(
            lambda: self._client("sqs").delete_message_batch(QueueUrl=queue_url, Entries=entries) if entries else None
        )

    async def _in_thread(self, work: Callable[[], T]) -> T:
        def done() -> T:
            from tiers.bronze.sagemaker.faults import STALE, fault_of  # noqa: PLC0415 - imports botocore

            try:
                return work()
            except Exception as error:
                fault = fault_of(error)
                if fault.word in STALE:
                    self._forget()
                log.warning("expert_aws_fault", aws=fault.word, reason=fault.reason, certain=fault.certain)
                raise fault from error

        found: T = await self._threads.run(done)
        return found

    def _object(self, place: Place) -> Any:  # boto3 has no types
        from tiers.bronze.sagemaker.faults import is_missing  # noqa: PLC0415 - imports botocore

        try:
            return self._client("s3").get_object(Bucket=place.bucket, Key=place.key)
        except Exception as error:
            if is_missing(error):
                return None
            raise

    def _forget(self) -> None:
        """Have the next client made anew: a file of credentials may have been renewed, and boto3 reads it once."""
        with self._lock:
            self._clients, self._session = {}, None

    def _client(self, service: str) -> Any:  # boto3 has no types
        with self._lock:  # boto3 makes one client at a time
            if service not in self._clients:
                self._clients[service] = self._made(service)
            return self._clients[service]

    def _made(self, service: str) -> Any:  # boto3 has no types
        import boto3  # noqa: PLC0415 # pyright: ignore[reportMissingTypeStubs] - 0.4 s and 30 MB; it has no types
        from botocore.config import Config  # noqa: PLC0415 # pyright: ignore[reportMissingTypeStubs] - the same
        from botocore.exceptions import NoCredentialsError  # noqa: PLC0415 # pyright: ignore[reportMissingTypeStubs]
        from botocore.session import Session  # noqa: PLC0415 # pyright: ignore[reportMissingTypeStubs]

        if self._session is None:
            found: Any = Session()
            # One short try: on a machine that is none of Amazon's nobody answers there.
            found.set_config_variable("metadata_service_timeout", _METADATA_S)
            found.set_config_variable("metadata_service_num_attempts", 1)
            self._session = boto3.Session(botocore_session=found, region_name=self._region)
        if self._session.get_credentials() is None:  # a client made without them would stay without
            self._session = None
            raise NoCredentialsError
        url = self._urls[service]
        once = service == "sagemaker-runtime"
        client: Any = self._session.client(
            service,
            endpoint_url=url,
            config=Config(
                connect_timeout=_CONNECT_S,
                # An empty queue is answered after its wait.
                read_timeout=_READ_S + (WAIT_S if service == "sqs" else 0),
                # boto3's own retry would be a second invocation.
                retries={"mode": "standard", "total_max_attempts": 1 if once else _ATTEMPTS},
                max_pool_connections=_CONNECTIONS,
                s3=None if url is None else {"addressing_style": "path"},
            ),
        )
        if once:
            client.meta.events.register("before-send.sagemaker-runtime.InvokeEndpointAsync", _alone)
        return client


def _alone(request: Any, **_: Any) -> None:  # botocore has no types
    """On a connection of its own: of one that was kept and is closed meanwhile, nobody knows whether it still took the question."""
    request.headers["Connection"] = "close"


def _too_late() -> AwsFault:
    from tiers.bronze.sagemaker.faults import AwsFault  # noqa: PLC0415 - imports botocore

    return AwsFault("too_slow", certain=True)
