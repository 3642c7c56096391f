"""The hub of personas: quality flags, relations, lineage, removals, withdrawals and releases."""
