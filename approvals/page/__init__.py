"""The pages on which people say yes: login, inbox, one approval, enrolment. No ASGI: a request in, a page out; the hub's front carries them."""
