"""HTTP rules for every request and connection, independent of routes."""
