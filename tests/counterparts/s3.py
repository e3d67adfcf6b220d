"""Owns an S3 for the tests: versitygw, a real server over a folder, in a process of its own; and one that says what a test wants."""

from __future__ import annotations

import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3  # pyright: ignore[reportMissingTypeStubs] - it has none
from botocore.config import Config  # pyright: ignore[reportMissingTypeStubs] - the same

from tests.components import data_dir
from tests.ports import free_port
from tests.waiting import wait_until_sync

KEY, SECRET = "test", "testsecret"
REGION = "us-east-1"


@dataclass(frozen=True)
class Bucket:
    """A bucket of a server, and who may use it."""

    url: str
    name: str
    key: str = KEY
    secret: str = SECRET

    def client(self) -> Any:
        """boto3's client with every right."""
        untyped: Any = boto3
        return untyped.client(
            "s3",
            region_name=REGION,
            endpoint_url=self.url,
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
        )

    def make(self) -> Bucket:
        """This bucket, made."""
        self.client().create_bucket(Bucket=self.name)
        return self

    def keys(self) -> list[str]:
        """What lies in it."""
        return [each["Key"] for each in self.client().list_objects_v2(Bucket=self.name).get("Contents", [])]


@contextmanager
def running(folder: Path) -> Generator[str]:
    """The address of a server over a folder, for as long as it is used."""
    port = free_port()
    server = subprocess.Popen(
        [data_dir().parent / "s3" / "versitygw", "--port", f"127.0.0.1:{port}", "posix", str(folder)],
        env={"ROOT_ACCESS_KEY": KEY, "ROOT_SECRET_KEY": SECRET, "HOME": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_sync(lambda: _answers(url), "versitygw answers")
        yield url
    finally:
        server.kill()
        server.wait(timeout=30)


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()  # noqa: S310 - loopback
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@dataclass
class Saying:
    """A server that says the same to every request, or to the first ones.

    Attributes:
        status: Of its answers.
        code: The error's word; empty for a body that is no error.
        cut: Whether it closes the connection in the middle of a body.
        times: To how many requests; all that come later are done. None: to all.
        asked: The requests: method and path.
    """

    status: int = 200
    code: str = ""
    cut: bool = False
    times: int | None = None
    url: str = ""
    asked: list[str] | None = None


@contextmanager
def saying(**what: Any) -> Generator[Saying]:
    """Such a server, for as long as it is used."""
    said = Saying(**what, asked=[])

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            assert said.asked is not None
            said.asked.append(f"{self.command} {self.path}")
            self.rfile.read(int(self.headers.get("content-length", 0)))
            done = said.times is not None and len(said.asked) > said.times
            body = f"<Error><Code>{said.code}</Code><Message>secret words of the server</Message></Error>".encode()
            body = body if said.code and not done else b"" if self.command == "PUT" else b"whatever"
            self.send_response(200 if done else said.status)
            self.send_header("content-type", "application/xml")
            self.send_header("content-length", str(len(body) + (100 if said.cut else 0)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
            self.close_connection = said.cut

        do_GET = do_PUT = do_HEAD = do_DELETE = _answer  # noqa: N815 - as the class wants them

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the class has it
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    said.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield said
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
