"""A federation of separate processes, as on real machines: TLS, keys, a store for each device."""
