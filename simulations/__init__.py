"""The Flower app, the ``dccl`` command and its reports."""
