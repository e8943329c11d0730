"""Images, the cloud/device split, and batches; logs of users and items, and samples of them."""
