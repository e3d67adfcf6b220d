"""The approval pages: login, inbox, one approval, enrolment; answers are made here, the hub serves them."""
