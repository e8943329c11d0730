"""Experiments as YAML, one a file; the first comment line is the command that runs it."""
