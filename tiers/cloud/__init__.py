"""Cloud: providers that are paid by the token."""
