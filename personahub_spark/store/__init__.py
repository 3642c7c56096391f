"""The Delta tables of the hub, and the only code that writes to them."""
