"""Ask models, each question once, and keep every answer."""
