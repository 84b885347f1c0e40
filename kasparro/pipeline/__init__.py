"""One run over the sources, when it happens, and what it says of itself."""
