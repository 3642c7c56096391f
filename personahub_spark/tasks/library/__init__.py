"""The package's tasks, each in one YAML file."""
