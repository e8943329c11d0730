"""`dccl scale`: what a device's turn costs over populations."""
