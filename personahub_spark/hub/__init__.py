"""What becomes of personas: their flags, their relations, where they come from, who leaves, what is released."""
