"""Carries all state of a database to another one, through a folder of files."""
