"""CSV archives: finds files, detects what they hold, and converts their rows to records."""
