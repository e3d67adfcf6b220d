"""Canon as structure: facts with their time and source, the predicates they use, and graphs of plots."""
