from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord

from dccl_flower.flower.wire import ndarrays, to_arrays, to_state


def test_a_state_survives_the_wire_in_order():
    state = {"b": torch.tensor([1.0, -2.0]), "a": torch.zeros(2, 3), "s": torch.tensor(0.5)}
    back = to_state(to_arrays(state), state)
    assert list(back) == ["b", "a", "s"]
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_received_tensors_own_their_memory():
    state = {"a": torch.zeros(2)}
    back = to_state(to_arrays(state), state)
    back["a"] += 1
    assert torch.equal(back["a"], torch.ones(2))


def test_a_record_of_another_model_is_an_error():
    with pytest.raises(ValueError, match=r"expected float32 \(3,\)"):
        to_state(to_arrays({"a": torch.zeros(2)}), {"a": torch.zeros(3)})


def array_that_says(shape, numbers=4, dtype="<f4"):
    """Return an array whose header tells another shape than its bytes hold."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    data = file.getvalue() + bytes(4 * numbers)
    return ArrayRecord({"w": Array("float32", (numbers,), "numpy.ndarray", data)})


@pytest.mark.parametrize("shape", [(10**13,), (2**40, 2**40), (3,), (5,), (0,), (2, 3), (-4,)])
def test_a_header_that_does_not_agree_with_its_bytes_is_refused_before_anything_is_made(shape):
    with pytest.raises(ValueError, match=r"^array 'w': "):
        ndarrays(array_that_says(shape))
    assert ndarrays(array_that_says((4,)))[0].tolist() == [0.0] * 4


@pytest.mark.parametrize("data", [b"", b"PK", b"\x93NUMPY\x09\x00", b"\x93NUMPY\x01\x00\xff\xffx"])
def test_what_is_not_in_numpys_format_is_refused(data):
    record = ArrayRecord({"w": Array("float32", (1,), "numpy.ndarray", data)})
    with pytest.raises(ValueError, match=r"^array 'w': is not in NumPy's format$"):
        ndarrays(record)


def test_objects_are_never_read():
    with pytest.raises(ValueError, match=r"^array 'w': "):
        ndarrays(array_that_says((2,), 4, "|O"))


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_read_as_numpy_saved_them(order):
    array = np.asarray(np.arange(6.0).reshape(2, 3), order=order)
    (read,) = ndarrays(ArrayRecord({"w": Array(array)}))
    np.testing.assert_array_equal(read, array)
