"""World files: a whole world as JSON, for people who design one. Read, checked, loaded in one transaction, written out again."""
