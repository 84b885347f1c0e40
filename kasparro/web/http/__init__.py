"""What every request and connection passes, whatever its route."""
