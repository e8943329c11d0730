"""The head of a classifier: the linear layer that gives the logits."""

from __future__ import annotations

import copy
from itertools import chain
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
    tell = getattr(model, "get_classifier", None)
    try:
        head = tell() if callable(tell) else None
    except Exception:  # whatever a foreign model says
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
        bare = _copy_around(model, {id(p): p for p in model.parameters()})
        # While it traces, torch.fx changes what every module of the process does when called.
        with alone():
            graph = _Tracer().trace(bare)
    except Exception:  # whatever a foreign forward() says to tensors without values
        return None
    modules = dict(bare.named_modules())
    fixed = _fixed(graph)
    (output,) = graph.find_nodes(op="output")
    sources: dict[str, None] = {}
    pending, seen = list(output.all_input_nodes), set()
    while pending:
        node = pending.pop(0)
        if node not in seen:
            seen.add(node)
            source, behind = _look_behind(node, modules, fixed)
            pending += behind
            if source is not None:
                sources[source] = None
    if isinstance(output.args[0], fx.Node):
        return list(sources)
    kind = type(output.args[0]).__name__.removeprefix("immutable_")
    return [f"a {kind} of {_listed(list(sources))}"]


def _fixed(graph: fx.Graph) -> dict[fx.Node, str]:
    """Return the nodes that come of the model's own tensors alone, with the name of the first."""
    fixed: dict[fx.Node, str] = {}
    for node in graph.nodes:
        own = [fixed.get(n) for n in node.all_input_nodes]
        if node.op == "get_attr":
            fixed[node] = str(node.target)
        elif own and own[0] is not None and None not in own:
            fixed[node] = own[0]
    return fixed


def _look_behind(
    node: fx.Node, modules: dict[str, nn.Module], fixed: dict[fx.Node, str]
) -> tuple[str | None, list[fx.Node]]:
    """Return the source of logits that a node is, or else the nodes that it has its values from."""
    if node.op == "placeholder":
        return "the images", []
    if node in fixed:
        return fixed[node], []
    if node.op == "call_module":
        name = str(node.target)
        module = modules[name]
        if isinstance(module, nn.Linear):
            return name, []
        own = any(True for _ in chain(module.parameters(), module.buffers()))
        return (f"{name} ({_kind(module)})", []) if own else (None, node.all_input_nodes)
    called = node.args[1] if node.target is getattr else node.target
    called = str(getattr(called, "__name__", called)).strip("_")
    if called in SHAPES:
        return None, []
    own_tensors = [fixed[n] for n in node.all_input_nodes if n in fixed]
    if own_tensors and called not in ELEMENTWISE:
        return own_tensors[0], []
    return None, [n for n in node.all_input_nodes if n not in fixed]


def _watched(model: nn.Module, example: Tensor) -> list[str] | None:
    """Return the linear layer whose output is the model's own; None where there is none."""
    given: list[tuple[str, Tensor, int]] = []

    def note(name: str, output: Tensor) -> None:
        given.append((name, output, output._version))

    tensors = [*model.parameters(), *model.buffers()]
    try:
        bare = _copy_around(model, {id(t): _without_data(t) for t in tensors})
        for name in _linear_layers(bare):
            layer = bare.get_submodule(name)
            layer.register_forward_hook(lambda _, inputs, output, name=name: note(name, output))
        with torch.inference_mode(False), torch.no_grad(), torch.device("meta"):
            output = bare(example.to("meta"))
    except Exception:  # as above
        return None
    # Where the version differs, something was added in place.
    return [
        name for name, own, version in given if own is output and own._version == version
    ] or None


def _copy_around(model: nn.Module, tensors: dict[int, Tensor]) -> nn.Module:
    """Return a copy for evaluation that holds ``tensors``, by the ids of those they stand for."""
    return copy.deepcopy(model, dict(tensors)).eval()


def _without_data(tensor: Tensor) -> Tensor:
    bare = tensor.detach().to("meta")
    return nn.Parameter(bare, requires_grad=False) if isinstance(tensor, nn.Parameter) else bare
