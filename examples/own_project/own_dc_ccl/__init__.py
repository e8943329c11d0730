"""DC-CCL in a Flower project with its own models and data."""
