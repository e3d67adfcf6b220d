"""Owns what goes in and out of the pages: one request, one answer, and the headers that keep a page to itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from urllib.parse import parse_qsl, urlsplit

import orjson

from body_broker.calls import Json
from body_broker.errors import BadInput

BODY_BYTES_MAX = 64 * 1024
"""Size of one form or JSON body sent to a page."""
_FIELDS_MAX = 40
_NEXT = re.compile(r"/approvals|/approve/apr_[A-Za-z0-9_-]{20,80}|/enroll/[A-Za-z0-9_-]{10,200}")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
# Forms would send `Origin: null` under no-referrer, and the origin is what tells ours from theirs.
SAFETY: tuple[tuple[str, str], ...] = (
    ("content-security-policy", _POLICY),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    (
        "permissions-policy",
        "publickey-credentials-get=(self), publickey-credentials-create=(self), camera=(), microphone=()",
    ),
)


@dataclass(frozen=True, kw_only=True)
class PageRequest:
    """One request of a browser, after the front has checked Host and Origin.

    Attributes:
        method: GET, HEAD or POST.
        path: Without the query.
        base: Scheme, host and port under which people reach these pages; what the browser must be at.
        query: The query's fields; the last of a name counts.
        cookies: By name.
        headers: Lower-case names.
        body: At most `BODY_BYTES_MAX`.
    """

    method: str
    path: str
    base: str
    query: Mapping[str, str] = field(default_factory=dict[str, str])
    cookies: Mapping[str, str] = field(default_factory=dict[str, str])
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""

    @property
    def is_secure(self) -> bool:
        """Whether the browser came over https."""
        return self.base.startswith("https:")

    @property
    def is_json(self) -> bool:
        """Whether a script sent this, which is answered in JSON."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"

    @cached_property
    def fields(self) -> Mapping[str, Json]:
        """The fields of the form or of the JSON object.

        Raises:
            BadInput: The body is neither.
        """
        if self.is_json:
            try:
                found: Json = orjson.loads(self.body)
            except orjson.JSONDecodeError as error:
                raise BadInput("The body is not JSON.") from error
            if not isinstance(found, dict):
                raise BadInput("The body is not a JSON object.")
            return found  # pyright: ignore[reportUnknownVariableType] - a JSON object
        try:
            return dict(parse_qsl(self.body.decode("ascii"), keep_blank_values=True, max_num_fields=_FIELDS_MAX))
        except ValueError as error:
            raise BadInput("The form cannot be read.") from error

    def text(self, name: str, limit: int = 500) -> str:
        """One field as text without blanks around it; empty where it is missing.

        Raises:
            BadInput: It is no text, or longer than `limit`.
        """
        found = self.fields.get(name, "")
        if not isinstance(found, str) or len(found) > limit:
            raise BadInput(f"The field {name} does not fit.", next_step=f"Write at most {limit} characters.")
        return found.strip()

    @property
    def next_path(self) -> str:
        """Where to go after the login: a page of ours, whatever the address said."""
        wanted = self.query.get("next", "") if self.method != "POST" else self.fields.get("next", "")
        return wanted if isinstance(wanted, str) and _NEXT.fullmatch(wanted) else "/approvals"


@dataclass(frozen=True, slots=True, kw_only=True)
class PageAnswer:
    """What the browser gets.

    Attributes:
        status: Of HTTP.
        body: Bytes.
        content_type: Of the body.
        headers: Beside those that every answer has.
        lasting: Whether the browser may keep it; pages never are.
    """

    status: int = 200
    body: bytes = b""
    content_type: str = "text/html; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()
    lasting: bool = False

    @classmethod
    def of_json(cls, value: Json, status: int = 200, *headers: tuple[str, str]) -> PageAnswer:
        """An answer for a script."""
        return cls(status=status, body=orjson.dumps(value), content_type="application/json", headers=headers)

    @classmethod
    def redirect(cls, path: str, *headers: tuple[str, str]) -> PageAnswer:
        """Go there, with GET."""
        return cls(status=303, headers=(("location", path), *headers))

    def all_headers(self) -> tuple[tuple[str, str], ...]:
        """Every header, the safe ones included."""
        kept = "public, max-age=31536000, immutable" if self.lasting else "no-store"
        return (("content-type", self.content_type), ("cache-control", kept), *SAFETY, *self.headers)


def set_cookie(
    request: PageRequest, name: str, value: str, *, ttl_s: int, same_site: str = "Strict"
) -> tuple[str, str]:
    """The header that gives the browser a cookie no script can read; `ttl_s` 0 takes it away."""
    secure = "; Secure" if request.is_secure else ""
    text = f"{cookie_name(request, name)}={value}; Path=/; Max-Age={ttl_s}; HttpOnly; SameSite={same_site}{secure}"
    return ("set-cookie", text)


def cookie_name(request: PageRequest, name: str) -> str:
    """A cookie's full name: browsers bind it to https where it begins with __Host-; of localhost all ports share their cookies."""
    port = urlsplit(request.base).port
    return f"__Host-bb_{name}" if request.is_secure else f"bb_{name}_{port or 80}"


def cookie(request: PageRequest, name: str) -> str:
    """What the browser sent back; empty where nothing."""
    return request.cookies.get(cookie_name(request, name), "")
