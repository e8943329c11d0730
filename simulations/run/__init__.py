"""`dccl run`: one run of the app, followed from outside."""
