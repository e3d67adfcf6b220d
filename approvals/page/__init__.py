"""The pages on which people say yes: login, inbox, one approval, enrolment. Pure: no ASGI; the hub's front carries requests here."""
