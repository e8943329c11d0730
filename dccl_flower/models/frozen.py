"""Parts of a model that never train: the shared stem, and batch statistics on demand."""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Frozen(nn.Module):
    """Wrap a module so that it stays in eval mode and out of the optimizer and the wire."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.eval().requires_grad_(False)

    def forward(self, *args: Any) -> Any:
        """Call the wrapped module."""
        return self.module(*args)

    def train(self, mode: bool = True) -> Self:
        """Ignore the mode: a frozen part always evaluates."""
        return self


def frozen_names(model: nn.Module) -> list[str]:
    """Return the names of the frozen parts, in order."""
    return [name for name, module in model.named_modules() if isinstance(module, Frozen)]


def frozen_prefixes(model: nn.Module) -> tuple[str, ...]:
    """Return what the names of all inside frozen parts begin with, to match by ``startswith``."""
    return tuple(f"{name}." for name in frozen_names(model))


def copy_frozen(source: nn.Module, target: nn.Module) -> None:
    """Copy the frozen parts of ``target`` from the parts of the same names in ``source``."""
    for name in frozen_names(target):
        part = source.get_submodule(name)
        part = part.module if isinstance(part, Frozen) else part
        target.get_submodule(f"{name}.module").load_state_dict(part.state_dict())


class Exchanged:
    """What crosses the wire of a model: its floating tensors outside frozen parts, by reference.

    Running means and variances are among them; integer counters are not. The references hold as
    long as the model is not moved: worth keeping where a model is loaded over and over.
    """

    def __init__(self, model: nn.Module) -> None:
        frozen, state = frozen_prefixes(model), model.state_dict()
        held = {name: t for name, t in state.items() if not name.startswith(frozen)}
        self.state = {name: t for name, t in held.items() if t.is_floating_point()}
        # Not exchanged; what another device left there must not matter.
        self._counters = [t for name, t in held.items() if name.endswith("num_batches_tracked")]

    def load(self, state: dict[str, Tensor]) -> None:
        """Copy a state into the model, in place. Raises ValueError where names or shapes differ."""
        if list(self.state) != list(state):
            odd = sorted(set(self.state) ^ set(state)) or list(state)
            text = f"{odd[0]!r} is missing, new or misplaced"
            raise ValueError(f"state does not fit the model: {text}")
        for name, tensor in self.state.items():
            if tensor.shape != state[name].shape:
                shapes = f"{tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
                raise ValueError(f"state does not fit the model: {name!r} has shape {shapes}")
            tensor.copy_(state[name])
        for counter in self._counters:
            counter.zero_()

    def snapshot(self) -> dict[str, Tensor]:
        """Return the state on the CPU; there it shares the model's memory."""
        return {name: tensor.detach().cpu() for name, tensor in self.state.items()}


def exchanged_state(model: nn.Module) -> dict[str, Tensor]:
    """Return references to what crosses the wire, see :class:`Exchanged`."""
    return Exchanged(model).state


def load_exchanged(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy a state of :func:`exchanged_state` into the model, as :meth:`Exchanged.load` does."""
    Exchanged(model).load(state)


def train_mode(model: nn.Module, freeze_statistics: bool) -> None:
    """Switch to training; with ``freeze_statistics`` batch norms keep and use what they hold."""
    model.train()
    if freeze_statistics:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
