"""A device: hand over models and data, and where to keep what the server sends once."""

from functools import partial

from flwr.app import Context

from dccl_flower import DcCclClient, numpy_client_app
from own_dc_ccl.task import device_loader, perceptron, store_folder


def client_fn(context: Context) -> DcCclClient:
    """Called for every message; the device's id stands in the message."""
    load_data = partial(device_loader, num_devices=int(context.run_config["num-devices"]))
    store = store_folder(context.run_id)
    return DcCclClient(perceptron(32), perceptron(32), load_data, store)


app = numpy_client_app(client_fn)
