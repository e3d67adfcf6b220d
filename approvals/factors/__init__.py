"""Second factors of people: TOTP and passkeys, enrolled, confirmed by somebody already enrolled, and checked."""

from approvals.factors.keyring import Factors
from approvals.factors.model import FactorInfo, Invitation, Invite, Proof, RelyingParty, TotpOffer, vote_challenge

__all__ = [
    "FactorInfo",
    "Factors",
    "Invitation",
    "Invite",
    "Proof",
    "RelyingParty",
    "TotpOffer",
    "vote_challenge",
]
