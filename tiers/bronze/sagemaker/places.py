"""Owns where things lie in S3: places as AWS writes them, and where a question's answer will be found."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from body_broker.text import is_clean

EXTENSION = "jobs/"
"""What is appended to the endpoint's S3OutputPath (S3OutputPathExtension)."""
_ID_MAX = 64
_TEXT_MAX = 2_048
"""Longer than any place in S3: a key has 1,024 bytes."""
_OF_A_BUCKET = re.compile(
    r"(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])\.s3[.-](?:[a-z0-9-]+\.)*amazonaws\.com(?:\.cn)?"
)
_OF_A_REGION = re.compile(r"s3[.-](?:[a-z0-9-]+\.)*amazonaws\.com(?:\.cn)?")
_OF_AN_ASKING = re.compile(r"(?P<job>[A-Za-z0-9_-]{1,51})-(?P<turn>[1-9][0-9]{0,4})-(?P<attempt>[1-9][0-9]{0,4})")


@dataclass(frozen=True, slots=True)
class Place:
    """An object in S3, whether it is there or not."""

    bucket: str
    key: str

    def __str__(self) -> str:
        """As AWS writes it."""
        return f"s3://{self.bucket}/{self.key}"

    def under(self, *names: str) -> Place:
        """A place below this one."""
        parts = [part.strip("/") for part in (self.key, *names)]
        return Place(self.bucket, "/".join(part for part in parts if part))

    @classmethod
    def parse(cls, text: str) -> Place | None:
        """The place that a text names, as s3://bucket/key or in one of the two https forms; None where it names none."""
        if len(text) > _TEXT_MAX or not is_clean(text):
            return None
        try:
            parts = urlsplit(text)
        except ValueError:
            return None
        if parts.scheme == "s3" and parts.netloc:
            return cls(parts.netloc, text.partition("://")[2].partition("/")[2])
        path = unquote(parts.path).lstrip("/")
        return _of_https(parts.netloc.lower(), path) if parts.scheme == "https" and is_clean(path) else None


def _of_https(host: str, path: str) -> Place | None:
    if found := _OF_A_BUCKET.fullmatch(host):
        return Place(found["bucket"], path)
    if _OF_A_REGION.fullmatch(host) and "/" in path:
        return Place(*path.split("/", 1))
    return None


@dataclass(frozen=True, slots=True)
class Asking:
    """One asking of one question of a job."""

    job: str
    turn: int
    attempt: int

    @property
    def inference_id(self) -> str:
        """What the endpoint calls it; says whose it is, where a notice has nothing else."""
        found = f"{self.job}-{self.turn}-{self.attempt}"
        assert len(found) <= _ID_MAX, "an id of a job has 28 characters"
        return found

    @property
    def filename(self) -> str:
        """The last part of its answer's key: known before it is asked, so that it is found after a crash. 32 characters at most."""
        return hashlib.sha256(f"{self.job} {self.turn} {self.attempt}".encode()).hexdigest()[:32]

    @classmethod
    def parse(cls, inference_id: str) -> Asking | None:
        """Whose asking an id is; None where it is none of ours."""
        found = _OF_AN_ASKING.fullmatch(inference_id)
        return None if found is None else cls(found["job"], int(found["turn"]), int(found["attempt"]))
