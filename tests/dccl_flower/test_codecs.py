from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dccl_flower.codecs import (
    CODECS,
    FP64,
    encoded_bytes,
)
from dccl_flower.models.frozen import exchanged_state

NAN, INF = math.nan, math.inf


def encode(codec, state):
    return CODECS[codec].encode(state)


def decode(codec, arrays, like):
    return CODECS[codec].decode(arrays, like)


def encode_update(codec, trained, received, residual):
    return CODECS[codec].encode_update(trained, received, residual)


def apply_update(codec, arrays, base):
    return CODECS[codec].apply_update(arrays, base)


# The scales are 127/127 = 1 and 25.4/127 = 0.2; 0.5 and 2.5 round to even, 0.33 is 1.65 steps of
# 0.2 and rounds to 2, and the vectors are sent as they are.
BY_HAND = {
    "conv.weight": torch.tensor([[[127.0, -63.4], [0.5, 2.5]]]),
    "norm.running_var": torch.tensor([1e-6, 1e6]),
    "head.weight": torch.tensor([[-25.4, 0.33], [0.0, 12.8]]),
    "head.bias": torch.tensor([0.1]),
}

numbers = st.floats(-(2.0**100), 2.0**100, width=32)
# Drawn as bits: hypothesis finds floats of 16 bits by leaving out most of those it draws.
halves = st.binary(min_size=2, max_size=2).map(lambda two: float(np.frombuffer(two, np.float16)[0]))
halves = halves.filter(lambda value: not math.isnan(value))
dimensions = st.lists(st.integers(1, 4), max_size=4)


@st.composite
def states(draw, values=numbers):
    def tensor(shape):
        count = math.prod(shape)
        return torch.tensor(draw(st.lists(values, min_size=count, max_size=count))).view(shape)

    shapes = draw(st.lists(dimensions, min_size=1, max_size=4))
    return {f"layer{place}.weight": tensor(shape) for place, shape in enumerate(shapes)}


def like_zeros(state):
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def bits(state):
    return [(n, each.shape, each.dtype, each.numpy().tobytes()) for n, each in state.items()]


def test_int8_by_hand():
    codes, scales, rest = encode("int8", BY_HAND)
    assert codes.dtype == np.int8
    assert codes.tolist() == [127, -63, 0, 2, -127, 2, 0, 64]
    assert scales.dtype == rest.dtype == np.float32
    np.testing.assert_array_equal(scales, np.array([1.0, 0.2], np.float32))
    np.testing.assert_array_equal(rest, np.array([1e-6, 1e6, 0.1], np.float32))
    decoded = decode("int8", [codes, scales, rest], like_zeros(BY_HAND))
    assert list(decoded) == list(BY_HAND)
    assert decoded["conv.weight"].tolist() == [[[127.0, -63.0], [0.0, 2.0]]]
    torch.testing.assert_close(decoded["head.weight"], torch.tensor([[-25.4, 0.4], [0.0, 12.8]]))
    for name in ("norm.running_var", "head.bias"):
        assert torch.equal(decoded[name], BY_HAND[name])


def test_an_int8_update_by_hand():
    # The change 1, 0.5, -127 plus the residual 0, 0.25, 0 is 1, 0.75, -127 in steps of 1.
    received = {"w": torch.tensor([[1.0, 2.0, 3.0]]), "b": torch.tensor([7.0])}
    trained = {"w": torch.tensor([[2.0, 2.5, -124.0]]), "b": torch.tensor([0.1])}
    kept = {"w": torch.tensor([[0.0, 0.25, 0.0]])}
    arrays, residual = encode_update("int8", trained, received, kept)
    assert [array.tolist() for array in arrays[:2]] == [[1, 1, -127], [1.0]]
    assert residual["w"].tolist() == [[0.0, -0.25, 0.0]]
    base = {"w": torch.tensor([[1.125, 2.125, 3.125]]), "b": torch.tensor([7.0])}
    applied = apply_update("int8", arrays, base)
    assert applied["w"].tolist() == [[2.125, 3.125, -123.875]]
    assert torch.equal(applied["b"], trained["b"])


@pytest.mark.parametrize(
    ("codec", "count", "size"), [("fp32", 1, 480), ("fp16", 1, 240), ("int8", 3, 80 + 80 + 160)]
)
def test_few_arrays_of_as_many_bytes_as_counted_by_hand(codec, count, size):
    state = exchanged_state(nn.Sequential(*[nn.Linear(2, 2) for _ in range(20)]))
    for arrays in (encode(codec, state), encode_update(codec, state, state, {})[0]):
        assert (len(arrays), encoded_bytes(arrays)) == (count, size)
    assert CODECS[codec].num_bytes(state) == size


@settings(deadline=None, max_examples=50)
@given(states(st.floats(width=32)))
def test_fp32_is_exact_to_the_bit(state):
    assert bits(decode("fp32", encode("fp32", state), like_zeros(state))) == bits(state)
    arrays, residual = encode_update("fp32", state, like_zeros(state), {})
    assert residual == {}
    assert bits(apply_update("fp32", arrays, like_zeros(state))) == bits(state)


@settings(deadline=None, max_examples=50)
@given(states(halves))
def test_fp16_keeps_what_half_precision_can_hold(state):
    arrays, residual = encode_update("fp16", state, like_zeros(state), {})
    assert arrays[0].dtype == np.float16
    assert residual == {}
    assert bits(apply_update("fp16", arrays, like_zeros(state))) == bits(state)
    assert bits(decode("fp16", encode("fp16", state), like_zeros(state))) == bits(state)


def test_fp16_saturates_what_is_finite_and_nothing_else():
    state = {"w": torch.tensor([1e6, -65520.0, 65504.0, INF, -INF, NAN, 1 / 3])}
    decoded = decode("fp16", encode("fp16", state), state)["w"]
    expected = torch.tensor([65504.0, -65504.0, 65504.0, INF, -INF, NAN, 0.333251953125])
    assert torch.equal(decoded.nan_to_num(-1.0, 1e9, -1e9), expected.nan_to_num(-1.0, 1e9, -1e9))


@settings(deadline=None, max_examples=100)
@given(states())
def test_int8_errs_by_half_a_step_at_most(state):
    codes, scales, rest = encode("int8", state)
    decoded, remaining = decode("int8", [codes, scales, rest], like_zeros(state)), scales.tolist()
    for name, tensor in state.items():
        if tensor.dim() < 2:
            assert torch.equal(decoded[name], tensor)
        else:
            scale = remaining.pop(0)
            assert scale == pytest.approx(tensor.abs().max().item() / 127, rel=1e-6, abs=1e-44)
            # Beside half a step: the rounding of quotient and product, of a scale next to zero.
            errors = (decoded[name].double() - tensor.double()).abs()
            assert (errors <= 0.50005 * scale + 1e-43).all()


@pytest.mark.parametrize(("ulps", "code", "step"), [(190, 127, 1), (60, 0, 0), (0, 0, 0)])
def test_scales_of_next_to_nothing_neither_wrap_around_nor_divide_by_zero(ulps, code, step):
    # 190/127 and 60/127 of the smallest float are one and none of it.
    smallest = 2.0**-149
    state = {"w": torch.tensor([[ulps * smallest, -ulps * smallest]])}
    arrays = encode("int8", state)
    assert [array.tolist() for array in arrays] == [[code, -code], [step * smallest], []]
    decoded = decode("int8", arrays, state)["w"]
    assert decoded.tolist() == [[code * step * smallest, -code * step * smallest]]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shapes", [[(2,), ()], [(1, 1), (1, 2)], []])
def test_states_of_vectors_alone_of_matrices_alone_and_of_nothing(codec, shapes):
    state = {str(place): torch.full(shape, 127.0) for place, shape in enumerate(shapes)}
    torch.testing.assert_close(decode(codec, encode(codec, state), state), state)
    arrays, _ = encode_update(codec, state, like_zeros(state), {})
    torch.testing.assert_close(apply_update(codec, arrays, like_zeros(state)), state)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.filterwarnings("error")
def test_nothing_is_shared_with_the_state_or_with_the_arrays(codec):
    state = {"w": torch.ones(1, 2), "b": torch.ones(2)}
    arrays = encode(codec, state)
    before = [array.tolist() for array in arrays]
    for array in arrays:
        array.setflags(write=False)  # as those of a message may be
    for decoded in (decode(codec, arrays, state), apply_update(codec, arrays, state)):
        for tensor in decoded.values():
            tensor.fill_(9.0)
    assert state["w"].tolist() == [[1.0, 1.0]]
    for tensor in state.values():
        tensor.fill_(5.0)
    assert [array.tolist() for array in arrays] == before


@pytest.mark.parametrize("seed", range(3))
def test_error_feedback_makes_up_for_what_rounding_loses(seed):
    generator = torch.Generator().manual_seed(seed)
    received, residual = {"w": torch.randn(4, 5, generator=generator)}, {}
    missing, largest_scale = torch.zeros(4, 5, dtype=torch.float64), 0.0
    for _ in range(60):
        size = 10.0 ** torch.randint(-3, 1, (), generator=generator)
        change = size * torch.randn(4, 5, generator=generator)
        trained = {"w": received["w"] + change}
        arrays, residual = encode_update("int8", trained, received, residual)
        missing += change - apply_update("int8", arrays, like_zeros(received))["w"]
        largest_scale = max(largest_scale, float(arrays[1][0]))
        assert (residual["w"].abs() <= 0.5001 * largest_scale).all()
        torch.testing.assert_close(missing, residual["w"].double(), rtol=0, atol=1e-5)


def test_a_change_too_small_for_one_update_arrives_in_time():
    # Beside a change of 127 a step is 1, and 0.25 alone would be rounded away each time.
    received = {"w": torch.tensor([[0.0, 0.0]])}
    trained = {"w": torch.tensor([[127.0, 0.25]])}
    residual, sent = {}, []
    for _ in range(8):
        arrays, residual = encode_update("int8", trained, received, residual)
        sent.append(int(arrays[0][1]))
    assert sum(sent) == 2
    assert encode_update("int8", trained, received, {})[0][0].tolist() == [127, 0]


@settings(deadline=None, max_examples=50)
@given(states(st.floats(-100, 100, width=32)), st.randoms(use_true_random=False))
def test_an_update_and_its_residual_make_up_the_trained_state(trained, random):
    received = {n: torch.full_like(each, random.uniform(-3, 3)) for n, each in trained.items()}
    arrays, residual = encode_update("int8", trained, received, {})
    applied = apply_update("int8", arrays, received)
    assert list(applied) == list(trained)
    assert list(residual) == [name for name, tensor in trained.items() if tensor.dim() >= 2]
    for name, tensor in trained.items():
        if name in residual:
            torch.testing.assert_close(applied[name] + residual[name], tensor, rtol=0, atol=1e-4)
        else:
            assert torch.equal(applied[name], tensor)


@pytest.mark.parametrize("shapes", [{"w": (3, 2)}, {"v": (2, 3)}, {"w": (2, 3), "v": (1, 1)}])
def test_a_residual_of_another_model_is_refused(shapes):
    residual = {name: torch.zeros(shape) for name, shape in shapes.items()}
    state = {"w": torch.ones(2, 3), "b": torch.ones(3)}
    with pytest.raises(ValueError, match="residual kept is of another model"):
        encode_update("int8", state, state, residual)


@pytest.mark.parametrize("value", [NAN, INF, -INF, 3.4e38])
def test_int8_does_not_hide_what_is_not_finite_on_its_way_down(value):
    state = {"a": torch.ones(2, 2), "w": torch.tensor([[1.0, value]]), "b": torch.ones(1)}
    with pytest.raises(ValueError, match="int8: the scale of 'w' is"):
        encode("int8", state)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("name", ["w", "b"])
def test_an_update_that_is_not_finite_is_found_by_who_reads_it(codec, value, name):
    received = {"a": torch.ones(2, 2), "w": torch.ones(2, 2), "b": torch.ones(2)}
    trained = {key: tensor.clone() for key, tensor in received.items()}
    trained[name].view(-1)[0] = value
    arrays, residual = encode_update(codec, trained, received, {})
    applied = apply_update(codec, arrays, received)
    assert [key for key in applied if not applied[key].isfinite().all()] == [name]
    assert all(tensor.isfinite().all() for tensor in residual.values())


def test_sums_in_double_precision_are_exact_to_the_bit():
    state = {"w": torch.tensor([[1 / 3, 1e-300]], dtype=torch.float64), "b": torch.tensor(0.1)}
    arrays = FP64.encode(state)
    assert [array.dtype for array in arrays] == [np.float64]
    assert bits(FP64.decode(arrays, state)) == bits({n: each.double() for n, each in state.items()})
    with pytest.raises(ValueError, match=r"float64 \(3,\), expected float64 \(11,\)"):
        FP64.decode(arrays, BY_HAND)


(FULL,), (HALF,) = encode("fp32", BY_HAND), encode("fp16", BY_HAND)
CODES, SCALES, REST = encode("int8", BY_HAND)
MALFORMED = [
    ("fp32", [], "0 arrays, expected 1"),
    ("fp32", [FULL[1:]], "float32 (10,), expected float32 (11,)"),
    ("fp32", [FULL.reshape(1, 11)], "float32 (1, 11), expected float32 (11,)"),
    ("fp32", [FULL.astype(float)], "float64 (11,), expected float32 (11,)"),
    ("fp32", [FULL.astype(">f4")], ">f4 (11,), expected float32 (11,)"),
    ("fp32", [HALF], "float16 (11,), expected float32 (11,)"),
    ("fp16", [FULL], "float32 (11,), expected float16 (11,)"),
    ("int8", [FULL], "1 arrays, expected 3"),
    ("int8", [CODES.view(np.uint8), SCALES, REST], "uint8 (8,), expected int8 (8,)"),
    ("int8", [CODES[:-1], SCALES, REST], "int8 (7,), expected int8 (8,)"),
    ("int8", [CODES, SCALES[:1], REST], "float32 (1,), expected float32 (2,)"),
    ("int8", [CODES, SCALES.astype(float), REST], "float64 (2,), expected float32 (2,)"),
    ("int8", [CODES, SCALES[0], REST], "float32 (), expected float32 (2,)"),
    ("int8", [CODES, SCALES, REST[1:]], "float32 (2,), expected float32 (3,)"),
]


@pytest.mark.parametrize(("codec", "arrays", "message"), MALFORMED)
def test_arrays_that_do_not_fit_are_refused_in_one_line(codec, arrays, message):
    for read in (decode, apply_update):
        with pytest.raises(ValueError, match=f"^{codec}: got .*{re.escape(message)}$"):
            read(codec, arrays, BY_HAND)


@pytest.mark.parametrize("scale", [NAN, INF, -INF, -0.5, 3.4e38])
def test_scales_that_cannot_be_are_refused(scale):
    scales = np.array([1.0, scale], np.float32)
    with pytest.raises(ValueError, match=r"the scale of 'head.weight' is .*, expected finite"):
        decode("int8", [CODES, scales, REST], BY_HAND)
