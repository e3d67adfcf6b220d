"""Who says yes: approvals by people. From the question to the result; what runs the call is handed in by the hub."""
