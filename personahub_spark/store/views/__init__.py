"""Views of the tables, one question each."""
