"""Ten devices learn to read digits."""
