"""The tasks that the package has, each whole in one YAML file."""
