"""Who says yes: approvals by people. Empty until approvals are built; the gate refuses what would need one and says so."""
