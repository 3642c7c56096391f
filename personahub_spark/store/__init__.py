"""The Delta tables of the hub, and the one way rows get into them."""
