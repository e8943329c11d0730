"""The models that both halves of MetaPatch have, and what of them crosses between the halves."""

from __future__ import annotations

from torch import Tensor, nn

from dccl_flower.codecs import State
from dccl_flower.config import ConfError
from dccl_flower.data.samples import Samples
from dccl_flower.interaction_experiment import InteractionExperiment
from dccl_flower.learning.recommend import Logits
from dccl_flower.models.frozen import Exchanged
from dccl_flower.models.patch import Encoder, MetaPatch, WholePatches
from dccl_flower.models.recommender import Recommender
from dccl_flower.seeds import isolated_rng
from dccl_flower.strategies.metapatch.conf import conf_of

MODEL, PATCHES, ENCODER, VECTOR = "model", "patches", "encoder", "vector"


class Parts:
    """A model, its patches and the encoder of vectors, with the weights that the seed draws.

    ``deployed`` is what every round begins with: the model, and where devices adapt by MetaPatch
    the patches' bases. ``alone`` is the model without them, ``taught`` what learns in stage 2,
    ``proxy`` all of them, which serve where the cloud stands in for devices.
    Raises ConfError for patches that do not go with the model.
    """

    def __init__(self, experiment: InteractionExperiment, model: Recommender) -> None:
        conf = conf_of(experiment)
        own, seed = conf.adaptation, conf.seed
        self.model = model
        try:
            with isolated_rng(seed, "init", PATCHES):
                self.patches = MetaPatch(
                    model.hidden_widths, own.points, own.bottleneck, own.rank, own.per_patch
                )
        except ValueError as error:
            raise ConfError(f"adaptation.{error}") from error
        with isolated_rng(seed, "init", "whole patches"):
            self.whole = WholePatches(model.hidden_widths, own.points, own.bottleneck)
        size, sizes = self.patches.vector_size, experiment.log.profile_sizes
        with isolated_rng(seed, "init", ENCODER):
            self.encoder = Encoder(size, model.width, sizes)
        self.has_vectors = own.by == "metapatch"
        self.alone = _exchanged({MODEL: model})
        self.taught = _exchanged({PATCHES: self.patches, ENCODER: self.encoder})
        self.proxy = _exchanged({MODEL: model, PATCHES: self.patches, ENCODER: self.encoder})
        both = {MODEL: model, PATCHES: self.patches}
        self.deployed = _exchanged(both) if self.has_vectors else self.alone

    def patched(self, vector: Tensor | None = None) -> Logits:
        """Return what gives logits of the patched model, by one vector or by each sample's own.

        The latter are ``samples["vector"]`` (N, size).
        """

        def logits(samples: Samples) -> Tensor:
            by = samples[VECTOR] if vector is None else vector
            return self.model(samples, self.patches.change(by))

        return logits


def copied(exchanged: Exchanged) -> State:
    """Return what crosses, as it is now."""
    return {name: tensor.clone() for name, tensor in exchanged.snapshot().items()}


def _exchanged(modules: dict[str, nn.Module]) -> Exchanged:
    return Exchanged(nn.ModuleDict(modules))
