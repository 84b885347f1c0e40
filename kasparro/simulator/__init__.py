"""Stand-ins of both market APIs, with faults that can be switched on."""
