"""What MetaPatch takes a device: its turns by the virtual clock, and what it serves."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

from torch import Tensor, nn

from dccl_flower.data.interactions import RECENT, TEST
from dccl_flower.data.samples import Samples, count
from dccl_flower.fleet.tiers import Load, Piece
from dccl_flower.interaction_experiment import InteractionExperiment
from dccl_flower.learning.cost import FLOAT32_BYTES
from dccl_flower.learning.metapatch import proxy
from dccl_flower.models.frozen import Frozen
from dccl_flower.models.patch import MetaPatch, WholePatches
from dccl_flower.models.recommender import Recommender
from dccl_flower.strategies.loads import fitting, scoring
from dccl_flower.strategies.metapatch.conf import conf_of
from dccl_flower.strategies.metapatch.parts import MODEL, VECTOR, Parts
from dccl_flower.strategies.ranked import SCORE_BYTES


class ByVector(nn.Module):
    """A model under patches of which the vector alone learns."""

    def __init__(self, model: Recommender, patches: MetaPatch) -> None:
        super().__init__()
        self.model = Frozen(deepcopy(model))
        self.patches = deepcopy(patches).requires_grad_(False)
        self.vector = nn.Parameter(patches.start())

    def forward(self, samples: Samples) -> Tensor:
        return self.model(samples, self.patches.change(self.vector))


class ByWeights(nn.Module):
    """A model under patches of which all weights learn."""

    def __init__(self, model: Recommender, patches: WholePatches) -> None:
        super().__init__()
        self.model = Frozen(deepcopy(model))
        self.patches = deepcopy(patches)

    def forward(self, samples: Samples) -> Tensor:
        return self.model(samples, self.patches.change())


class ByProxy(nn.Module):
    """A model under patches of the encoder's vectors; it stays, bases and encoder learn."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.model = deepcopy(parts.model).requires_grad_(False)
        self.patches, self.encoder = deepcopy(parts.patches), deepcopy(parts.encoder)

    def forward(self, samples: Samples) -> Tensor:
        return proxy(self.model, self.patches, self.encoder)(samples)


def turn_load(experiment: InteractionExperiment, parts: Parts) -> Load:
    """Return what a turn takes a device with as many samples as devices have in the mean.

    It receives the state and trains on what it has of late, then scores; up go its vector and the
    scores. Stages on devices, and the scores of the cloud's new model, are exchanges of their own.
    """
    conf, example = conf_of(experiment), experiment.example
    size, own, new = (
        conf.device.batch_size,
        experiment.rows_a_device(RECENT),
        experiment.rows_a_device(TEST),
    )
    by = conf.adaptation.by
    adapted = _adapted(by, parts)
    vector_bytes = FLOAT32_BYTES * parts.patches.vector_size if parts.has_vectors else 0
    pieces = [Piece(parts.deployed.state, up_bytes=vector_bytes + SCORE_BYTES)]
    if by != "none":
        pieces.append(fitting(adapted, example, conf.device, own))
    pieces.append(scoring(adapted, example, size, new))
    if conf.method.raw_samples == "device":
        if conf.cloud.has_teachers:
            pieces.append(scoring(adapted, example, size, own))
        pieces += _stages(experiment, parts, own)
    if conf.method.serves == "cloud":
        pieces.append(Piece(parts.alone.state, up_bytes=SCORE_BYTES))
        pieces.append(scoring(parts.model, example, size, new))
    if conf.method.serves == "proxy":
        pieces.append(Piece(parts.proxy.state, up_bytes=SCORE_BYTES))
        pieces.append(scoring(ByProxy(parts), _with_vectors(parts, example), size, new))
    return Load(pieces)


def when_served(
    experiment: InteractionExperiment, parts: Parts
) -> Mapping[str, tuple[nn.Module, Samples]]:
    """Return the model, and where it serves adapted what it is then, each with a batch."""
    conf = conf_of(experiment)
    batch = experiment.samples(experiment.log.rows_in(RECENT)[: conf.device.batch_size])
    modules: dict[str, nn.Module] = {MODEL: parts.model}
    if conf.method.serves == "device" and conf.adaptation.by in ("metapatch", "patches"):
        modules["patched"] = _adapted(conf.adaptation.by, parts)
    if conf.method.serves == "proxy":
        modules["proxy"] = ByProxy(parts)
        batch = _with_vectors(parts, batch)
    return {name: (module, batch) for name, module in modules.items()}


def _adapted(by: str, parts: Parts) -> nn.Module:
    """Return what a device trains, with what stays as it is."""
    if by == "metapatch":
        return ByVector(parts.model, parts.patches)
    return ByWeights(parts.model, parts.whole) if by == "patches" else parts.model


def _with_vectors(parts: Parts, samples: Samples) -> Samples:
    return {**samples, VECTOR: parts.patches.start().expand(count(samples), -1)}


def _stages(experiment: InteractionExperiment, parts: Parts, own: float) -> list[Piece]:
    cloud, example, pieces = conf_of(experiment).cloud, experiment.example, []
    if cloud.model_learns:
        model = parts.alone.state
        pieces += [Piece(model, model), fitting(parts.model, example, cloud.stage_1, own)]
    if cloud.patches_learn:
        taught = parts.taught.state
        model_bytes = sum(tensor.nbytes for tensor in parts.alone.state.values())
        given = _with_vectors(parts, example)
        pieces.append(Piece(taught, taught, down_bytes=model_bytes))
        pieces.append(fitting(ByProxy(parts), given, cloud.stage_2, own))
    return pieces
