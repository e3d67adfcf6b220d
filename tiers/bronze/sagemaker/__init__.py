"""Owns experts behind a SageMaker asynchronous endpoint: questions are queued there, answers come as objects in S3."""
