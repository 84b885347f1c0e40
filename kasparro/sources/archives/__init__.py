"""CSV archives: from any file to records."""
