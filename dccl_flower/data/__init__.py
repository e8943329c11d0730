"""Images, the cloud/device split, and batches."""
