"""What is told of the hub."""
