"""The thin border to Flower: client adapter, node directory, wire format, ledger."""
