"""Slack as a channel of approvals: cards, clicks, Socket Mode and signed HTTP. The only package that imports slack_sdk."""
