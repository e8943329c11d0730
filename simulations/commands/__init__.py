"""What the ``dccl`` command can do; the work itself is done elsewhere."""
