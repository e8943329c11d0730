"""The head of a classifier: the linear layer that gives the logits."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn

from dccl_flower.config import ConfError
from dccl_flower.seeds import alone

LISTED = 12
# What asks for a shape alone, and so passes no values on.
SHAPES = {"size", "dim", "numel", "shape", "ndim", "ndimension", "len", "device", "dtype"}
# What may scale or shift logits by a parameter; any other use of one makes logits of its own.
ELEMENTWISE = {"add", "sub", "mul", "truediv", "div", "iadd", "isub", "imul", "itruediv", "rsub"}

_found: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def find_head(
    model: nn.Module, *, example: Tensor | None = None, name: str | None = None
) -> tuple[str, nn.Linear]:
    """Return name and module of the linear layer that gives the logits.

    It is the layer ``name``, the only linear one, or what the output is traced back to: by the
    model's graph, or else by what layers give for images like ``example`` (N, C, H, W). The model
    stays as it is, and what was found or named is remembered for it. Raises ConfError where no
    linear layer alone gives the logits, or the model does not show which.
    """
    modules = dict(model.named_modules())
    if name is None:
        name = _found.get(model, "")
        if not isinstance(modules.get(name), nn.Linear):
            name = _search(model, example)
    head = modules.get(name)
    if not isinstance(head, nn.Linear):
        what = "no such layer" if head is None else f"a {type(head).__name__}"
        allowed = _listed(_linear_layers(model))
        raise ConfError(f"head={name}: {what} in {_kind(model)}; linear layers are {allowed}")
    _found[model] = name
    return name, head


def _search(model: nn.Module, example: Tensor | None) -> str:
    linear = _linear_layers(model)
    if not linear:
        raise ConfError(f"{_kind(model)}: a model needs a linear head")
    if len(linear) == 1:
        return linear[0]
    sources = _named_by_model(model) or _traced(model)
    if sources is None and example is not None:
        sources = _watched(model, example)
    if sources is None:
        said = f"cannot tell which of {_listed(linear)} gives the logits"
    elif len(sources) == 1 and sources[0] in linear:
        return sources[0]
    else:
        said = f"the logits come from {_listed(sources)}, not from one linear layer"
    raise ConfError(f"{_kind(model)}: {said}; give head=NAME")


def _kind(model: nn.Module) -> str:
    return type(model).__name__


def _linear_layers(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def _listed(names: list[str]) -> str:
    left_out = ["..."] if len(names) > LISTED else []
    return ", ".join([*left_out, *names[-LISTED:]]) or "none"


def _named_by_model(model: nn.Module) -> list[str]:
    """Return the one head that the model itself names, as models of timm do."""
    try:
        head = cast(Any, model).get_classifier()
    except Exception:  # it has none, or whatever a foreign model says
        return []
    return [n for n, m in model.named_modules() if m is head and isinstance(m, nn.Linear)]


class _Tracer(fx.Tracer):
    """Keeps linear layers whole, a library's own kinds of them too."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Linear) or super().is_leaf_module(m, module_qualified_name)


def _traced(model: nn.Module) -> list[str] | None:
    """Return what the output comes from by the model's graph; None where it shows none."""
    try:
        # The trace runs the model's own code, which may keep what it sees: on a copy, then.
        bare = copy.deepcopy(model, {id(p): p for p in model.parameters()}).eval()
        # While it traces, torch.fx changes what every module of the process does when called.
        with alone():
            graph = _Tracer().trace(bare)
    except Exception:  # whatever a foreign forward() says to tensors without values
        return None
    modules = dict(bare.named_modules())
    sources: dict[fx.Node, list[str]] = {}
    fixed: set[fx.Node] = set()  # what comes of the model's own tensors alone
    for node in graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "get_attr" or (inputs and fixed.issuperset(inputs) and node.op != "output"):
            fixed.add(node)
            sources[node] = sources[inputs[0]] if inputs else [str(node.target)]
        else:
            sources[node] = _sources(node, modules, fixed, sources)
    (output,) = graph.find_nodes(op="output")
    if isinstance(output.args[0], fx.Node):
        return sources[output]
    kind = type(output.args[0]).__name__.removeprefix("immutable_")
    return [f"a {kind} of {_listed(sources[output])}"]


def _sources(
    node: fx.Node,
    modules: dict[str, nn.Module],
    fixed: set[fx.Node],
    sources: dict[fx.Node, list[str]],
) -> list[str]:
    """Return what a node has its values from, by the sources of the nodes before it."""
    if node.op == "placeholder":
        return ["the images"]
    passed = node.all_input_nodes
    if node.op == "call_module":
        name, module = str(node.target), modules[str(node.target)]
        if isinstance(module, nn.Linear):
            return [name]
        if [*module.parameters(), *module.buffers()]:
            return [f"{name} ({_kind(module)})"]
    elif node.op != "output":
        called = node.args[1] if node.target is getattr else node.target
        called = str(getattr(called, "__name__", called)).strip("_")
        if called in SHAPES:
            return []
        own = [n for n in passed if n in fixed]
        if own and called not in ELEMENTWISE:
            return sources[own[0]]
        passed = [n for n in passed if n not in fixed]
    return list(dict.fromkeys(source for n in passed for source in sources[n]))


def _watched(model: nn.Module, example: Tensor) -> list[str] | None:
    """Return the linear layer whose output is the model's own; None where there is none."""
    given: list[tuple[str, Tensor, int]] = []

    def note(name: str, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        given.append((name, output, output._version))

    try:
        bare = copy.deepcopy(model).to("meta").eval()
        for name in _linear_layers(bare):
            bare.get_submodule(name).register_forward_hook(partial(note, name))
        with torch.inference_mode(False), torch.no_grad(), torch.device("meta"):
            output = bare(example.to("meta"))
    except Exception:  # as above
        return None
    # Where the version differs, something was added in place.
    return [
        name for name, own, version in given if own is output and own._version == version
    ] or None
