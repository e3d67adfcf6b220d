"""Owns signed HTTP: Slack's requests are believed by the signature over the very bytes that came, and only while they are fresh."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import parse_qs

import orjson
from slack_sdk.signature import Clock, SignatureVerifier

from approvals.slack.clicks import Clicks
from body_broker.calls import Json

_PAYLOAD = "payload"
_STAMP_HEADER = "x-slack-request-timestamp"
_STAMP = re.compile(r"[0-9]{1,12}")


class SlackHttp:
    """The request URL of the Slack app, as a function of body and headers.

    Args:
        signing_secret: The app's.
        clicks: What is done with what people clicked.
        clock: The time; Slack's requests are good for five minutes.
    """

    def __init__(self, signing_secret: str, clicks: Clicks, clock: Clock | None = None) -> None:
        self._verifier = SignatureVerifier(signing_secret, clock or Clock())
        self._clicks = clicks

    async def __call__(self, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """Status and body of the answer: 401 for whatever Slack did not sign within five minutes.

        Args:
            body: As it came, to the byte.
            headers: Names in any case.
        """
        if not self._is_slacks(body, headers):
            return 401, b"The signature does not hold."
        payload = _payload(body)
        if payload is None:
            return 400, b"There is no payload."
        taken, said = await self._clicks.in_time(payload)
        if not taken:
            return 503, b"Not done in time."
        return 200, b"" if said is None else orjson.dumps(said)

    def _is_slacks(self, body: bytes, headers: Mapping[str, str]) -> bool:
        stamps = [value for name, value in headers.items() if name.lower() == _STAMP_HEADER]
        if len(stamps) != 1 or not _STAMP.fullmatch(
            stamps[0]
        ):  # what the SDK makes a number of may be too large for one
            return False
        try:
            return self._verifier.is_valid_request(body, dict(headers))
        except (ValueError, TypeError):  # a body or signature that is no text
            return False


def _payload(body: bytes) -> Json:
    try:
        fields = parse_qs(body.decode(), max_num_fields=10)
        return orjson.loads(fields[_PAYLOAD][0])
    except (ValueError, KeyError):
        return None
