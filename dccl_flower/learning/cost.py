"""What a model costs: parameters, bytes, operations, and the memory that training it holds.

Everything is counted on a copy without data (torch's meta device), so nothing is computed, the
numbers are the same on every machine, and the model is left as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from dccl_flower.models.frozen import exchanged_state

FLOPS_A_MAC = 2
FLOAT32_BYTES = 4
# Batch norms need two samples; one more shows what each sample adds.
BATCH, LARGER_BATCH = 2, 3
Batch = Tensor | Mapping[str, Tensor]  # images (N, ...), or samples by column, each (N, ...)


@dataclass(frozen=True)
class Cost:
    """The counts of one model; without arguments, those of no model at all.

    ``state_bytes``: what a checkpoint holds. ``exchanged_bytes``: what crosses the wire a round
    and way, as 32-bit floats. A sample costs ``forward_macs`` multiply-accumulates to score;
    ``training_flops`` to train on, two a MAC; and ``activation_bytes`` that the forward pass saves
    for the backward pass. ``batch_bytes`` are saved once a batch, whatever its size.
    ``layer_bytes``: the largest input and output of a layer, by sample. Torch counts convolutions,
    products of matrices and attention as operations; norms, activations and pooling are free.
    """

    parameters: int = 0
    trainable_parameters: int = 0
    state_bytes: int = 0
    exchanged_bytes: int = 0
    forward_macs: int = 0
    training_flops: int = 0
    activation_bytes: int = 0
    batch_bytes: int = 0
    layer_bytes: int = 0


def model_cost(model: nn.Module, example: Batch) -> Cost:
    """Count what a model of logits costs; of ``example`` shape and type of a sample matter.

    Frozen parts cost no gradients, and neither does what lies only before them. The loss's own
    few bytes are left out. Raises RuntimeError where the model does not take such samples, and
    ValueError where it gives something else than logits when it trains.
    """
    small, large = (_measure(model, example, size) for size in (BATCH, LARGER_BATCH))
    sample = _Measured(*(more - less for less, more in zip(small, large, strict=True)))
    return _cost(model, sample, small.saved_bytes - BATCH * sample.saved_bytes)


def batch_cost(model: nn.Module, batch: Batch) -> Cost:
    """Count what a batch as a whole costs a model in which samples see each other.

    All that is by sample elsewhere is here of all of them. Raises as :func:`model_cost` does.
    """
    return _cost(model, _measure(model, batch, num_samples(batch)), 0)


def scoring_cost(model: nn.Module, example: Batch) -> Cost:
    """Count what a model costs that only scores, whatever it gives; training is left at 0.

    Raises RuntimeError where it does not take such samples.
    """
    bare = copy.deepcopy(model).to("meta")
    with torch.device("meta"):
        small, large = (
            _measure_scoring(bare, _blank(example, size)) for size in (BATCH, LARGER_BATCH)
        )
    flops, layer_bytes = (more - less for less, more in zip(small, large, strict=True))
    return _cost(model, _Measured(flops, layer_bytes, 0, 0), 0)


def num_samples(batch: Batch) -> int:
    """Return the number of samples in a batch."""
    return len(batch if isinstance(batch, Tensor) else next(iter(batch.values())))


def _cost(model: nn.Module, sample: _Measured, batch_bytes: int) -> Cost:
    return Cost(
        parameters=sum(p.numel() for p in model.parameters()),
        trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        state_bytes=sum(t.numel() * t.element_size() for t in model.state_dict().values()),
        exchanged_bytes=FLOAT32_BYTES * sum(t.numel() for t in exchanged_state(model).values()),
        forward_macs=sample.forward_flops // FLOPS_A_MAC,
        training_flops=sample.training_flops,
        activation_bytes=sample.saved_bytes,
        batch_bytes=batch_bytes,
        layer_bytes=sample.layer_bytes,
    )


def forward_macs(module: nn.Module, inputs: Batch) -> int:
    """Count the multiply-accumulates of one forward pass on ``inputs``, as a batch."""
    bare = copy.deepcopy(module).to("meta").eval()
    with torch.device("meta"), _flop_counter() as counter, torch.no_grad():
        bare(_blank(inputs, num_samples(inputs)))
    return counter.get_total_flops() // FLOPS_A_MAC


def training_memory(co: Cost, control: Cost, batch_size: int, moments: int) -> int:
    """Estimate the bytes that a device needs to train ``co`` under ``control``.

    Weights of both, gradients and optimizer of the co-submodel, its activations, and the control's
    largest layer: the control runs without a graph, and so holds one layer at a time. ``moments``:
    numbers that the optimizer keeps of a weight, 1 with momentum and 2 by Adam. Left out: the
    framework itself, samples at rest, workspaces of kernels, and gradients of activations on their
    way. A real peak lies higher.
    """
    weights = co.state_bytes + control.state_bytes
    buffers = FLOAT32_BYTES * co.trainable_parameters * (1 + moments)
    co_pass = co.batch_bytes + batch_size * co.activation_bytes
    return weights + buffers + co_pass + batch_size * control.layer_bytes


def turn_flops(co: Cost, control: Cost, samples: int) -> int:
    """Return the FLOPs of training ``co`` on that many samples, each scored by the control too."""
    return samples * (co.training_flops + FLOPS_A_MAC * control.forward_macs)


class _Measured(NamedTuple):
    forward_flops: int
    layer_bytes: int
    training_flops: int
    saved_bytes: int


def _measure(model: nn.Module, example: Batch, batch_size: int) -> _Measured:
    bare = copy.deepcopy(model).to("meta")
    with torch.device("meta"):
        batch = _blank(example, batch_size)
        return _Measured(*_measure_scoring(bare, batch), *_measure_training(bare, batch))


def _blank(example: Batch, batch_size: int) -> Batch:
    """Return a batch of zeros on torch's device of now."""
    if isinstance(example, Tensor):
        return torch.zeros(batch_size, *example.shape[1:], dtype=example.dtype)
    columns = example.items()
    return {n: torch.zeros(batch_size, *t.shape[1:], dtype=t.dtype) for n, t in columns}


def _measure_scoring(model: nn.Module, batch: Batch) -> tuple[int, int]:
    layers = [0]

    def note_layer(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        layers.append(_storage_bytes(_tensors((inputs, output))))

    hooks = [module.register_forward_hook(note_layer) for module in model.modules()]
    with _flop_counter() as counter, torch.no_grad():
        model.eval()(batch)
    for hook in hooks:
        hook.remove()
    return counter.get_total_flops(), max(layers)


def _measure_training(model: nn.Module, batch: Batch) -> tuple[int, int]:
    own = {tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())}
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with _flop_counter() as counter:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            logits = model.train()(batch)
        if not isinstance(logits, Tensor):
            raise ValueError(f"gives {type(logits).__name__} in training, expected logits")
        if logits.requires_grad:
            logits.sum().backward()
    activations = (tensor for tensor in saved if tensor.untyped_storage() not in own)
    return counter.get_total_flops(), _storage_bytes(activations)


def _flop_counter() -> FlopCounterMode:
    backward = {torch.ops.aten.convolution_backward: _conv_backward_flops}
    return FlopCounterMode(display=False, custom_mapping=backward)


def _conv_backward_flops(
    grad_out: Sequence[int], x: Sequence[int], weight: Sequence[int], *args: Any, **_: Any
) -> int:
    """Count the gradients asked for, by shapes: each costs what the forward pass does.

    Torch's own formula overlooks groups, and so overrates depthwise convolutions by their channels
    (https://github.com/pytorch/pytorch/pull/183405).
    """
    transposed, (of_input, of_weight, _of_bias) = args[4], args[7]
    positions = prod((x if transposed else grad_out)[2:])
    forward = FLOPS_A_MAC * x[0] * positions * prod(weight)
    return forward * (of_input + of_weight)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def _storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Add up the memory behind tensors; those that share it count once."""
    return sum(storage.nbytes() for storage in {tensor.untyped_storage() for tensor in tensors})
