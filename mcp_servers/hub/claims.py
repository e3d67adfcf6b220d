"""Owns what stands in our tokens: the claims' types, how every id in them is spelled, and whose revocation ends them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from mcp_servers.hub.principals import is_call_key, is_principal, is_session, is_tier
from mcp_servers.hub.tokens import ACTORS_MAX

# The issuer's clock may be this far ahead of ours; it concerns `iat` alone, never `nbf` or `exp`.
ISSUED_AHEAD_S = 5.0
DEPTH_MAX = 1_000
Seconds = Annotated[float, Field(ge=0, le=1e11)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


class _Act(_Strict):
    sub: str
    sid: str
    act: _Act | None = None


class _Asker(_Strict):
    sid: str
    jti: str | None
    above: list[str] = Field(max_length=ACTORS_MAX)


class Claims(_Strict):
    """The claims of our tokens; others are ignored, as RFC 7519 asks."""

    iss: str
    aud: str
    sub: str
    jti: str
    sid: str
    iat: Seconds
    exp: Seconds
    nbf: Seconds | None = None
    act: _Act | None = None
    asker: _Asker | None = None
    depth: Annotated[int, Field(ge=0, le=DEPTH_MAX)] = 0
    key: str | None = None

    def actors(self) -> list[_Act]:
        """Who acts, the first one first."""
        found, act = list[_Act](), self.act
        while act is not None:
            found.insert(0, act)
            act = act.act
        return found

    def well_formed(self) -> bool:
        """Whether every id is spelled as we spell it, a chain has its asker's session, and no other token is for one call."""
        actors, asker = self.actors(), self.asker
        sessions = [self.sid, self.jti, *[a.sid for a in actors]]
        if asker is not None:
            sessions += [asker.sid, *asker.above]
        return (
            is_principal(self.sub)
            and all(map(is_session, sessions))
            and all(is_tier(a.sub) for a in actors)
            and len(actors) <= ACTORS_MAX
            and (asker is not None) == bool(actors)
            and (self.key is None or (bool(actors) and is_call_key(self.key)))
        )

    def logins(self) -> list[str]:
        """The asker's sessions, where others act for them: the conversations above this one and the login they began in."""
        return [] if self.asker is None else [self.asker.sid, *self.asker.above]

    def ids(self) -> set[str]:
        """Everything whose revocation ends this token."""
        found = {self.jti, self.sid, *[a.sid for a in self.actors()]}
        if self.asker is not None:
            found |= {self.asker.sid, *self.asker.above}
            if self.asker.jti is not None:
                found.add(self.asker.jti)
        return found
