"""Which rows are the same coin: evidence, rules and decisions, without a database."""
