"""The wire forms that engines speak; one dialect a module."""
