"""PostgreSQL from a wheel: its programs, its lifecycle, its supervisor."""
