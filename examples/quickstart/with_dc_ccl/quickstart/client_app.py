"""A device trains the co-submodel beside the mimic, and sends it back."""

from functools import partial

from flwr.app import Context

from dccl_flower import DcCclClient, numpy_client_app
from quickstart.task import halves, load_data


def client_fn(context: Context) -> DcCclClient:
    """Return a device; which one stands in the message."""
    load = partial(load_data, num_devices=int(context.run_config["num-devices"]))
    return DcCclClient(halves()[1], halves()[1], load)


app = numpy_client_app(client_fn)
