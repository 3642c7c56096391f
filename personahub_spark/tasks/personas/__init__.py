"""The tasks that find personas: Text-to-Persona and Persona-to-Persona (paper section 2)."""
