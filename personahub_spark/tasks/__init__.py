"""What to ask a model and how to read its answer: one picklable Task value per task, plain Python."""
