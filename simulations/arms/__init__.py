"""`dccl arms`: methods and settings side by side on the same data, steps and seeds."""
