"""The one error base of the project; a subclass only where a caller acts differently."""


class PersonaHubError(Exception):
    """Something the user can act on: its message says what was found, what was wanted, and what to do."""


class SettingsError(PersonaHubError):
    """A setting is unknown, missing or has a bad value; the message names it."""
