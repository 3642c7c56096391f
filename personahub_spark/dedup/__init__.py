"""Near-duplicate personas: what is similar (``surface``), and who is kept (``survivors``)."""
