"""Published claims, re-examined: one executed page per public table. The tables are not part of the repository."""
