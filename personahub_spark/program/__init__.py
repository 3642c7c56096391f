"""How a program runs: its session, its steps, its options and exit codes."""
