"""Settings of a run, checked before anything starts."""
