"""The response cache, valid for one data version."""
