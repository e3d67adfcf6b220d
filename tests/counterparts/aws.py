"""Owns an AWS for the tests: moto's server in a process of its own on loopback, which enforces IAM when told to.

As a program (`python -m tests.counterparts.aws`) it is that server: it prints its address and ends when its standard input does,
so that it never outlives the test that started it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import boto3  # pyright: ignore[reportMissingTypeStubs] - it has none
from botocore.config import Config  # pyright: ignore[reportMissingTypeStubs] - the same

from tests.tools.project import ROOT

ACCOUNT = "123456789012"
REGION = "eu-central-1"
HUB_USER = "hub"

# moto checks the permission of a signing name, and of the operation; AWS' own names of these differ.
_MOTO_SAYS = {"cloudwatch:": "monitoring:"}


@dataclass
class Cloud:
    """A moto server, and what a test does with it."""

    url: str
    root: tuple[str, str] = ("x", "y")
    hub: tuple[str, str] = ("x", "y")

    def client(self, service: str, region: str = REGION) -> Any:
        """boto3's client with every right."""
        untyped: Any = boto3
        key, secret = self.root
        return untyped.client(
            service,
            region_name=region,
            endpoint_url=self.url,
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            config=Config(retries={"total_max_attempts": 1}),
        )

    def begin(self) -> None:
        """An empty account with two users: one that may do everything, and the hub's, which may assume roles."""
        self.relax()
        self.post("reset")
        self.root = ("x", "y")
        hub = {
            "Effect": "Allow",
            "Action": ["sts:AssumeRole", "sts:TagSession", "sts:SetSourceIdentity"],
            "Resource": "*",
        }
        self.hub = self._user(HUB_USER, hub)
        self.root = self._user("root", {"Effect": "Allow", "Action": "*", "Resource": "*"})

    def enforce(self) -> None:
        """From now on each call needs its permission."""
        self.post("reset-auth", b"0")

    def relax(self) -> None:
        """From now on everybody may do everything."""
        self.post("reset-auth", b"inf")

    def role(self, name: str, actions: Iterable[str], *, trusts: str = HUB_USER) -> str:
        """The ARN of a role with these permissions; another call with the same name changes them."""
        iam = self.client("iam")
        trust = {
            "Effect": "Allow",
            "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:user/{trusts}"},
            "Action": ["sts:AssumeRole", "sts:TagSession", "sts:SetSourceIdentity"],
        }
        if name not in [role["RoleName"] for role in iam.list_roles()["Roles"]]:
            iam.create_role(RoleName=name, AssumeRolePolicyDocument=_policy(trust))
        names = sorted({_moto_name(action) for action in actions} | set(actions)) or ["sts:GetCallerIdentity"]
        allowed = _policy({"Effect": "Allow", "Action": names, "Resource": "*"})
        iam.put_role_policy(RoleName=name, PolicyName="reads", PolicyDocument=allowed)
        return f"arn:aws:iam::{ACCOUNT}:role/{name}"

    def post(self, path: str, body: bytes = b"") -> None:
        """Call moto's own interface."""
        asked = urllib.request.Request(f"{self.url}/moto-api/{path}", data=body, headers={"content-type": "text/plain"})  # noqa: S310 - loopback
        with urllib.request.urlopen(asked, timeout=60):  # noqa: S310 - the same
            pass

    def _user(self, name: str, statement: dict[str, Any]) -> tuple[str, str]:
        iam = self.client("iam")
        iam.create_user(UserName=name)
        iam.put_user_policy(UserName=name, PolicyName="may", PolicyDocument=_policy(statement))
        key = iam.create_access_key(UserName=name)["AccessKey"]
        return key["AccessKeyId"], key["SecretAccessKey"]


@contextmanager
def running() -> Generator[Cloud]:
    """A server, for as long as it is used."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.counterparts.aws"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        yield Cloud(server.stdout.readline().decode().strip())
    finally:
        server.stdin.close()
        server.wait(timeout=30)
        server.stdout.close()


def _policy(statement: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def _moto_name(action: str) -> str:
    for ours, theirs in _MOTO_SAYS.items():
        if action.startswith(ours):
            return theirs + action.removeprefix(ours)
    return action


def _serve() -> None:
    from moto.iam.access_control import IAMRequestBase  # noqa: PLC0415 - the parent does not need it
    from moto.server import ThreadedMotoServer  # noqa: PLC0415 - the same

    # Checking a signature, moto takes the names in a GET's path for its body, which is empty.
    untyped: Any = IAMRequestBase
    checked = untyped._create_aws_request

    def repaired(asked: Any) -> Any:
        if asked._method == "GET":
            asked._data = {}
        return checked(asked)

    untyped._create_aws_request = repaired
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    print(f"http://{host}:{port}", flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    _serve()
