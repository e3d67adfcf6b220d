"""Owns how many streams are held open in this hub: each asker's, so that none takes the places of all, and all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager

from body_broker.calls import Caller
from body_broker.errors import TooBusy, Unavailable

STREAMS_MAX = 64
"""Streams that one asker may hold in a hub, what listens in their name included."""
STREAMS_IN_ALL_MAX = 1_024
_AGAIN_S = 30.0


class Held:
    """The streams that listen: `subscriptions/listen`, and the one that older revisions keep open by a GET.

    They are no open calls: one may last for days and costs nothing meanwhile but its place here.
    """

    def __init__(self) -> None:
        self._of: Counter[str] = Counter()

    @property
    def count(self) -> int:
        """How many there are now."""
        return self._of.total()

    @contextmanager
    def one(self, caller: Caller) -> Generator[None]:
        """A place for one stream, until the way out.

        Raises:
            TooBusy: Its asker holds as many as they may.
            Unavailable: So does this hub.
        """
        asker = caller.asker
        if self._of[asker] >= STREAMS_MAX:
            raise TooBusy(
                f"{STREAMS_MAX} streams of yours are held open in this hub already.",
                next_step="End one of them, or hear everything in one: a stream takes many URIs and all kinds of changes.",
                details={"limit": STREAMS_MAX},
            )
        if self.count >= STREAMS_IN_ALL_MAX:
            raise Unavailable(
                f"This hub holds {STREAMS_IN_ALL_MAX} streams open and takes no more.",
                next_step="Read what you would hear of, or listen at another hub.",
                retry_after_s=_AGAIN_S,
                details={"component": "hub"},
            )
        self._of[asker] += 1
        try:
            yield
        finally:
            self._of[asker] -= 1
            if not self._of[asker]:
                del self._of[asker]
