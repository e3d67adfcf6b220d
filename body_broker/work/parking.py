"""Owns how a run lays its work down until something outside has come: a person's answer, or a model's that runs elsewhere."""

from __future__ import annotations

from body_broker.text import clean

APPROVAL_PREFIX = "apr_"
"""Keys that begin so are approvals: work that waits for one is woken by the database itself once nothing more will come of it."""
_KEY_MAX, _MESSAGE_MAX = 200, 500


# Of no kind that handlers catch by name: nothing went wrong.
class Park(Exception):
    """Raised out of a handler, it lays the work down: it holds no worker and no place under its limit, and uses up no attempt.

    Once it is woken, by `queue.wake` or by its time, the same handler gets it again, with every step that was recorded.

    Args:
        key: What it waits for: an approval's id, or a name that whoever brings it gives to `queue.wake`.
        wake_in_s: Seconds after which it looks again in any case. A key that is no approval's needs them: a waking that comes while
            the work still runs finds nobody to wake.
        message: What its owner reads as its progress meanwhile; None leaves what stands there.
    """

    def __init__(self, key: str, *, wake_in_s: float | None = None, message: str | None = None) -> None:
        assert 1 <= len(key) <= _KEY_MAX, "a key has 1 to 200 characters"
        assert wake_in_s is not None or key.startswith(APPROVAL_PREFIX), (
            "a waking by name can be lost: it must look again"
        )
        super().__init__(key)
        self.key = key
        self.wake_in_s = None if wake_in_s is None else max(wake_in_s, 0.0)
        self.message = None if message is None else clean(message, limit=_MESSAGE_MAX)
