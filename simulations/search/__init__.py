"""`dccl search`: which settings close the gap, found without the test set."""
