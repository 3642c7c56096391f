"""Reports about the hub."""
