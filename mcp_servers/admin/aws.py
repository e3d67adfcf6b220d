"""Owns the sessions with AWS: a role assumed per principal, tagged and narrowed, and one client per service and region in it.

Everything here blocks, and is called in threads. Imports boto3: services.py imports this file on first use.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import boto3  # pyright: ignore[reportMissingTypeStubs] - it has none
from botocore.config import Config  # pyright: ignore[reportMissingTypeStubs] - nor has it
from botocore.exceptions import BotoCoreError  # pyright: ignore[reportMissingTypeStubs] - the same
from botocore.session import Session as Botocore  # pyright: ignore[reportMissingTypeStubs] - the same

from body_broker.errors import BadInput, NotConfigured
from body_broker.text import canonical_json
from mcp_servers.admin import catalogue
from mcp_servers.admin.faults import no_credentials, told, told_of_assuming
from mcp_servers.admin.query import Who
from mcp_servers.admin.roles import Grant

CONNECT_S = 3
READ_S = 12
ATTEMPTS = 3
RENEWED_BEFORE_S = 120
SESSIONS_MAX = 64

_CONNECTIONS = 8
_METADATA_S = 1
_HOME_REGION = {"aws": "us-east-1", "aws-cn": "cn-northwest-1", "aws-us-gov": "us-gov-west-1"}
_NAME_MAX = 64
_NOT_IN_NAMES = re.compile(r"[^\w+=,.@-]")


@dataclass(slots=True)
class Session:
    """A role that was assumed, until it expires.

    Attributes:
        grant: Whose role.
        account: Its account, as AWS said.
        arn: Who the session is to AWS.
        tags: Its tags.
        source_identity: Whom CloudTrail names as the source.
        expires_at: Unix seconds.
        credentials: boto3's words for them.
    """

    grant: Grant
    account: str
    arn: str
    tags: dict[str, str]
    source_identity: str
    expires_at: float
    credentials: dict[str, str] = field(repr=False)
    clients: dict[tuple[str, str], Any] = field(default_factory=dict[tuple[str, str], Any], repr=False)


class Aws:
    """AWS as one process sees it.

    Args:
        region: Asked where a call names none; None takes boto3's own default.
        endpoint_url: Another endpoint for every service.
        clock: Unix seconds.
    """

    def __init__(self, *, region: str | None, endpoint_url: str | None, clock: Callable[[], float]) -> None:
        self._region, self._endpoint_url, self._clock = region, endpoint_url, clock
        self._own = _own_session()
        self._lock = threading.Lock()
        self._sts: dict[str, Any] = {}
        self._sessions: OrderedDict[tuple[str, Who], Session] = OrderedDict()

    def region(self, service: str, asked: str | None, *, everywhere: bool, partition: str) -> str:
        """The region to ask.

        Raises:
            BadInput: There is no such region, or the service is not in it; it names the nearest.
            NotConfigured: The call names none, and nothing else does.
        """
        region = asked or self._default_region()
        known: list[str] = self._own.get_available_regions(service, partition_name=partition)
        home = _HOME_REGION[partition]
        if (
            region is not None
            and region not in known
            and region not in self._own.get_available_regions("ec2", partition_name=partition)
        ):
            near = get_close_matches(region, known or [home], n=3, cutoff=0.4)
            raise BadInput(
                "There is no such AWS region, or the service is not there.",
                next_step=f"Nearest: {', '.join(near)}." if near else f"Regions are named like {home}.",
                details={"problems": ["region: unknown"], "nearest": near},
            )
        if everywhere:
            return home
        if region is None:
            raise NotConfigured(
                "The call names no AWS region, and this hub has none by default.",
                next_step="Call again with a region, or ask the people who run this hub to set BODY_BROKER_AWS_REGION.",
                details={"setting": "BODY_BROKER_AWS_REGION"},
            )
        return region

    def session(self, grant: Grant, who: Who) -> Session:
        """A session in a principal's role: the one there is, until shortly before it expires.

        Raises:
            NotConfigured: The hub has no credentials, or may not assume the role.
            Unavailable: STS cannot be reached.
        """
        key = (grant.arn, who)
        with self._lock:
            found = self._sessions.get(key)
            if found is not None and found.expires_at - RENEWED_BEFORE_S > self._clock():
                self._sessions.move_to_end(key)
                return found
        made = self._assume(grant, who)
        with self._lock:
            self._sessions[key] = made
            self._sessions.move_to_end(key)
            while len(self._sessions) > SESSIONS_MAX:
                self._sessions.popitem(last=False)
        return made

    def forget(self, session: Session) -> None:
        """Have the next call assume the role anew; AWS did not accept this session."""
        with self._lock:
            for key in [key for key, kept in self._sessions.items() if kept is session]:
                del self._sessions[key]

    def client(self, session: Session, service: str, region: str) -> Any:  # boto3 has no types
        """The session's client of a service in a region."""
        with self._lock:  # boto3 makes one client at a time
            found = session.clients.get((service, region))
            if found is None:
                found = session.clients[service, region] = self._client(service, region, session.credentials)
            return found

    def identity(self, session: Session, region: str) -> tuple[str, str]:
        """The account and the ARN that AWS itself says the session is.

        Raises:
            BodyBrokerError: AWS does not answer.
        """
        try:
            said: Any = self.client(session, "sts", region).get_caller_identity()
        except Exception as error:
            raise told(error, action="sts:GetCallerIdentity", grant=session.grant) from error
        return said["Account"], said["Arn"]

    def _assume(self, grant: Grant, who: Who) -> Session:
        tags, source = who.tags(), _name(who.chain[0])
        asked: dict[str, Any] = {
            "RoleArn": grant.arn,
            "RoleSessionName": _name(".".join(reversed(who.chain))),
            "DurationSeconds": grant.duration_s,
            "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
            "SourceIdentity": source,
            "Policy": canonical_json(catalogue.iam_policy()).decode(),
        }
        if grant.external_id is not None:
            asked["ExternalId"] = grant.external_id
        try:
            said: Any = self._own_sts(grant).assume_role(**asked)
        except Exception as error:
            raise told_of_assuming(error, grant) from error
        given = said["Credentials"]
        return Session(
            grant=grant,
            account=grant.account,
            arn=said["AssumedRoleUser"]["Arn"],
            tags=tags,
            source_identity=source,
            expires_at=given["Expiration"].timestamp(),
            credentials={
                "aws_access_key_id": given["AccessKeyId"],
                "aws_secret_access_key": given["SecretAccessKey"],
                "aws_session_token": given["SessionToken"],
            },
        )

    def _default_region(self) -> str | None:
        return self._region or self._own.region_name

    def _own_sts(self, grant: Grant) -> Any:  # boto3 has no types
        region = self._default_region() or _HOME_REGION[grant.partition]
        with self._lock:
            # A client made without credentials would stay without: they are looked for each time there are none.
            if _credentials(self._own) is None:
                raise no_credentials()
            if region not in self._sts:
                self._sts[region] = self._client("sts", region, {})
            return self._sts[region]

    def _client(self, service: str, region: str, credentials: dict[str, str]) -> Any:  # boto3 has no types
        return self._own.client(
            service,
            region_name=region,
            endpoint_url=self._endpoint_url,
            config=Config(
                connect_timeout=CONNECT_S,
                read_timeout=READ_S,
                retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
                max_pool_connections=_CONNECTIONS,
            ),
            **credentials,
        )


def _own_session() -> Any:  # boto3 has no types
    try:
        found: Any = Botocore()
        # One short try: on a machine that is none of Amazon's nobody answers there.
        found.set_config_variable("metadata_service_timeout", _METADATA_S)
        found.set_config_variable("metadata_service_num_attempts", 1)
        return boto3.Session(botocore_session=found)
    except BotoCoreError as error:  # a profile or a file that cannot be read
        raise no_credentials() from error


def _credentials(session: Any) -> Any:  # boto3 has no types
    try:
        return session.get_credentials()
    except Exception as error:  # its sources raise errors of many libraries
        raise no_credentials() from error


def _name(principals: str) -> str:
    """A session's name, as STS spells them: the tags have it whole."""
    return _NOT_IN_NAMES.sub(".", principals)[:_NAME_MAX]
