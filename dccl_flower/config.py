"""The configuration's sections, keys, types and defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Normalisation = Literal["batch", "batch_frozen", "batch_fused", "batch_mixed", "group", "group_ws"]


class ConfError(ValueError):
    """A mistake of the user's: one line that names the key, the value and what is allowed."""


@dataclass
class DataConf:
    """Where the images come from; a local folder of parquet wins over the hub name."""

    name: str = "digits"
    path: str | None = None
    image_column: str = "image"
    label_column: str = "label"
    group_column: str | None = None
    rgb: bool = False
    train_fraction: float = 1.0
    validation: float = 0.1
    augment: Literal["none", "flip_crop"] = "none"


@dataclass
class SplitConf:
    """Which samples the cloud holds and which the devices hold."""

    by: Literal["classes", "fraction"] = "classes"
    cloud_classes: list[int] = field(default_factory=list)
    device_classes: list[int] = field(default_factory=list)
    mix: float = 0.1
    device_fraction: float = 0.2


@dataclass
class DevicesConf:
    """The federation: how many devices, how many a round, how their data are drawn.

    ``draws`` gives each device ``samples`` images drawn with replacement, so that there may be more
    devices than images. ``profiles`` names tiers of devices, by which a virtual clock runs: of
    ``over_sampling`` times the cohort the first to answer count, within ``deadline`` virtual
    seconds.
    """

    count: int = 10
    per_round: int | None = None
    partitioner: Literal["iid", "dirichlet", "pathological", "natural", "draws"] = "iid"
    alpha: float = 0.5
    classes_per_device: int = 2
    samples: int = 50
    store: str | None = None
    profiles: str | None = None
    deadline: float | None = None
    over_sampling: float = 1.0


@dataclass
class BackboneConf:
    """A model of its own in place of a slice of the base model."""

    name: str | None = None
    pretrained: bool = False


@dataclass
class ModelConf:
    """The base model, how it is cut, and other backbones for co-submodel and mimic.

    ``co_start``: the co-submodel begins as its part of the ``base`` model, or with the weights of
    the distilled ``mimic`` and a head of zeros, so that nothing is lost before the first step.
    """

    base: str = "small_cnn"
    pretrained: bool = False
    co_ratio: float = 0.125
    shared_stem: bool = False
    co_start: Literal["base", "mimic"] = "base"
    co: BackboneConf = field(default_factory=BackboneConf)
    mimic: BackboneConf = field(default_factory=BackboneConf)


@dataclass
class PretrainConf:
    """Cross-entropy training of the cloud submodel by SGD.

    ``schedule``: ``one_cycle``, or ``step``, which takes 0.4 of the rate every five epochs.
    ``mask_unseen`` leaves classes without samples out of the softmax.
    """

    epochs: int = 20
    batch_size: int = 128
    lr: float = 0.1
    schedule: Literal["one_cycle", "step"] = "one_cycle"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    mask_unseen: bool = False


@dataclass
class DistilConf:
    """Logit regression of the mimic: Adam, a tenth of the rate in the second half."""

    epochs: int = 20
    batch_size: int = 128
    lr: float = 1e-3
    mixup: bool = False


@dataclass
class RoundsConf:
    """The federated rounds; both sides take the same number of steps.

    ``max_grad_norm`` clips the gradient of each step, 0 does not; frozen statistics need it,
    since nothing else holds back a layer whose activations outgrow what was frozen.
    ``keep_momentum`` carries each side's momentum buffers on from round to round. ``scaffold``
    corrects the sides' drift by control variates. ``server_momentum`` acts on the fused change.
    ``statistics_step`` is the share of the way that fused batch statistics go each round.
    """

    count: int = 10
    local_steps: int = 20
    cloud_batch_size: int = 100
    device_batch_size: int = 20
    lr: float = 0.01
    lr_schedule: Literal["last_two_halved", "constant", "cosine"] = "last_two_halved"
    momentum: float = 0.9
    keep_momentum: bool = False
    server_momentum: float = 0.0
    scaffold: bool = False
    weight_decay: float = 5e-4
    max_grad_norm: float = 0.0
    cloud_weight: float = 0.5
    freeze_statistics_after: float = 0.34
    statistics_step: float = 1.0
    head_tuning_steps: int = 1
    head_tuning_lr: float = 0.1
    min_replies: float = 1.0
    timeout: float = 3600.0


class TwoSidedRoundsConf(RoundsConf):
    pass


CutModelConf = ModelConf


@dataclass
class MethodConf:
    """x."""

    name: str = "dc_ccl"


@dataclass
class WireConf:
    """How co-submodels travel: as they are, or in 16 or 8 bits."""

    codec: Literal["fp32", "fp16", "int8", "named"] = "fp32"


@dataclass
class RuntimeConf:
    """How the simulation runs; thread counts are part of it because they change float sums.

    ``devices_per_node``: how many devices a message carries at most, trained one after the other.
    ``cache_logits`` computes the control's logits once a device, where nothing augments its images.
    ``resident`` keeps data and modules in the worker process from message to message.
    ``mixed_precision`` (bfloat16) and ``channels_last`` speed up pretraining and distillation.
    ``reuse`` takes cloud submodel and mimic of the same seed and settings from the cache.
    """

    nodes: int | None = None
    devices_per_node: int = 1
    workers: int = 2
    threads: int = 1
    server_threads: int = 2
    cache_logits: bool = True
    resident: bool = True
    gpu: bool = False
    mixed_precision: bool = False
    channels_last: bool = False
    reuse: bool = False


@dataclass
class ArmsConf:
    """What sets the arms of a comparison apart, as ``key=value`` overrides."""

    published: list[str] = field(default_factory=list)
    strict: list[str] = field(default_factory=list)
    exemplars: list[str] = field(default_factory=list)
    central: list[str] = field(default_factory=list)


@dataclass
class Conf:
    """One experiment."""

    name: str = "unnamed"
    seed: int = 0
    method: MethodConf = field(default_factory=MethodConf)
    data: DataConf = field(default_factory=DataConf)
    split: SplitConf = field(default_factory=SplitConf)
    devices: DevicesConf = field(default_factory=DevicesConf)
    model: ModelConf = field(default_factory=ModelConf)
    pretrain: PretrainConf = field(default_factory=PretrainConf)
    distil: DistilConf = field(default_factory=DistilConf)
    rounds: RoundsConf = field(default_factory=RoundsConf)
    control: Literal["mimic", "cloud_submodel", "none"] = "mimic"
    normalisation: Normalisation = "batch"
    loss: Literal["ce", "prior_corrected"] = "ce"
    fusion: Literal["average", "class_wise_head"] = "average"
    head_tuning: Literal["none", "federated"] = "none"
    exemplars: int = 0
    exemplar_choice: Literal["random", "herded"] = "random"
    target_gain: float | None = None
    wire: WireConf = field(default_factory=WireConf)
    runtime: RuntimeConf = field(default_factory=RuntimeConf)
    arms: ArmsConf = field(default_factory=ArmsConf)
