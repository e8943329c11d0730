"""The configuration of experiments with images, as far as it is more than one method's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from dccl_flower.config import BareRoundsConf, Conf, DataConf, DevicesConf
from dccl_flower.typed_yaml import ConfError, bound, path, section, share

Normalisation = Literal["batch", "batch_frozen", "batch_fused", "batch_mixed", "group", "group_ws"]


@dataclass
class ImageDataConf(DataConf):
    """Where the images come from: the hub, or a local folder of parquet or of images.

    ``test_split`` names the split that scores; where there is none, a ``test_share`` of the
    training images does, and is not trained on. With ``image_size`` the middle square of each image
    is brought to so many pixels a side, or to the size that ``model.base`` was made for.
    ``normalise``: by mean and deviation of the cloud's pixels, or those that ``model.base`` was
    pretrained with.
    """

    name: str = "digits"
    image_column: str = "image"
    label_column: str = "label"
    group_column: str | None = None
    test_split: str = "test"
    test_share: float = bound(0.0, at_least=0, below=1)
    rgb: bool = False
    image_size: int | Literal["model"] | None = bound(None, at_least=1)
    normalise: Literal["cloud", "model"] = "cloud"
    train_fraction: float = bound(1.0, above=0, at_most=1)
    validation: float = bound(0.1, above=0, below=1)
    augment: Literal["none", "flip_crop"] = "none"


@dataclass
class SplitConf:
    """Which samples the cloud holds and which the devices hold; classes by number or name.

    ``10-19`` in a list: the classes from 10 to 19. ``rest`` in place of a list: all classes that
    the other side does not have.
    """

    by: Literal["classes", "fraction"] = "classes"
    cloud_classes: list[int | str] | Literal["rest"] = field(default_factory=list)
    device_classes: list[int | str] | Literal["rest"] = field(default_factory=list)
    mix: float = share(0.1)
    device_fraction: float = share(0.2)


@dataclass
class ImageDevicesConf(DevicesConf):
    """How images are dealt out to devices.

    ``draws``: each has ``samples`` images drawn with replacement; there may be more devices than
    images. ``heterogeneity``: the share of its samples that a device keeps while the rest of all is
    mixed and dealt out anew; at 0 all are alike.
    """

    partitioner: Literal["iid", "dirichlet", "pathological", "natural", "draws"] = "iid"
    alpha: float = bound(0.5, above=0)
    classes_per_device: int = bound(2, at_least=1)
    heterogeneity: float = share(1.0)
    samples: int = bound(50, at_least=1)


@dataclass
class BackboneConf:
    """A model of its own in place of a slice of the base model, with weights as the base has."""

    name: str | None = None
    pretrained: bool = False
    weights: str | None = path(".safetensors")


@dataclass
class ModelConf:
    """The base model, which starts from drawn weights, its library's, or those of a file.

    ``weights``: a safetensors file of the model's state. Of other classes its head is left out.
    """

    base: str = "small_cnn"
    pretrained: bool = False
    weights: str | None = path(".safetensors")

    def with_weights(self) -> dict[str, Any]:
        """Return the sections that name a file of weights, by their keys."""
        sections = {"model": self} | {f"model.{name}": part for name, part in vars(self).items()}
        return {k: part for k, part in sections.items() if getattr(part, "weights", None)}


@dataclass
class CutModelConf(ModelConf):
    """How a co-submodel is cut from the base model, or the other backbone that it is."""

    co_ratio: float = bound(0.125, above=0, below=1)
    shared_stem: bool = False
    co: BackboneConf = section(BackboneConf)


@dataclass
class MimicModelConf(CutModelConf):
    """Beside the co-submodel the mimic, where its architecture is another one.

    ``co_start``: the co-submodel begins as its part of the ``base`` model, or with the weights of
    the distilled ``mimic`` and a head of zeros, so that nothing is lost before the first step.
    """

    co_start: Literal["base", "mimic"] = "base"
    mimic: BackboneConf = section(BackboneConf)


@dataclass
class PretrainConf:
    """Cross-entropy training of the cloud submodel by SGD.

    ``step`` takes 0.4 of the rate every five epochs. ``mask_unseen`` leaves classes without samples
    out of the softmax. ``head_epochs`` come before the others and train the head alone.
    """

    epochs: int = bound(20, at_least=1)
    head_epochs: int = bound(0, at_least=0)
    batch_size: int = bound(128, at_least=2)
    lr: float = bound(0.1, above=0)
    schedule: Literal["one_cycle", "step"] = "one_cycle"
    momentum: float = share(0.9)
    weight_decay: float = share(5e-4)
    mask_unseen: bool = False


@dataclass
class DistilConf:
    """Logit regression of the mimic: Adam, a tenth of the rate in the second half."""

    epochs: int = bound(20, at_least=1)
    batch_size: int = bound(128, at_least=2)
    lr: float = bound(1e-3, above=0)
    mixup: bool = False


@dataclass
class RoundsConf(BareRoundsConf):
    """The federated rounds; ``max_grad_norm`` clips the gradient of each step, 0 does not.

    Frozen statistics need it: nothing else holds back a layer that outgrows what was frozen.
    """

    local_steps: int = bound(20, at_least=1)
    device_batch_size: int = bound(20, at_least=2)
    lr: float = bound(0.01, above=0)
    lr_schedule: Literal["last_two_halved", "constant", "cosine"] = "last_two_halved"
    momentum: float = share(0.9)
    weight_decay: float = share(5e-4)
    max_grad_norm: float = bound(0.0, at_least=0)

    @property
    def steps(self) -> int:
        """How many steps a device trains in all."""
        return self.count * self.local_steps


@dataclass
class TwoSidedRoundsConf(RoundsConf):
    """Rounds in which the cloud trains a copy of its own, as many steps as a device.

    ``keep_momentum`` carries each side's momentum buffers on from round to round. ``scaffold``
    corrects the sides' drift by control variates. ``server_momentum`` acts on the fused change.
    ``statistics_step`` is the share of the way that fused batch statistics go each round. Devices
    with fewer samples than ``head_tuning_floor`` give no head gradient; the others' are clipped to
    the norm ``head_tuning_clip`` (0: not) and get noise of ``head_tuning_noise`` times that.
    """

    cloud_batch_size: int = bound(100, at_least=2)
    cloud_weight: float = share(0.5)
    keep_momentum: bool = False
    server_momentum: float = share(0.0)
    scaffold: bool = False
    freeze_statistics_after: float = share(0.34)
    statistics_step: float = share(1.0)
    head_tuning_steps: int = bound(1, at_least=1)
    head_tuning_lr: float = bound(0.1, above=0)
    head_tuning_floor: int = bound(16, at_least=1)
    head_tuning_clip: float = bound(0.0, at_least=0)
    head_tuning_noise: float = bound(0.0, at_least=0)


@dataclass
class ImageConf(Conf):
    """An experiment with images, of which the cloud and the devices hold parts."""

    data: ImageDataConf = section(ImageDataConf)
    split: SplitConf = section(SplitConf)
    devices: ImageDevicesConf = section(ImageDevicesConf)
    model: ModelConf = section(ModelConf)
    rounds: RoundsConf = section(RoundsConf)

    def check(self) -> None:
        """Raise ConfError for values that do not go with one another."""
        if self.split.by == "fraction" and self.split.device_fraction in (0, 1):
            given = f"split.device_fraction={self.split.device_fraction}"
            raise ConfError(f"{given}: must lie between 0 and 1, both excluded")
        for key, part in self.model.with_weights().items():
            if getattr(part, "name", "") is None:
                told = f"needs {key}.name; a slice has the weights of model.base"
                raise ConfError(f"{key}.weights={part.weights}: {told}")
            if part.pretrained:
                raise ConfError(f"{key}.pretrained=true: not with {key}.weights={part.weights}")
        devices = self.devices
        if devices.heterogeneity != 1 and devices.partitioner in ("natural", "draws"):
            given = f"devices.heterogeneity={devices.heterogeneity}"
            raise ConfError(f"{given}: must be 1 with devices.partitioner={devices.partitioner}")
        super().check()


@dataclass
class SubmodelsConf(ImageConf):
    """An experiment with a base model that is cut in two, and a mimic of its larger part."""

    model: MimicModelConf = section(MimicModelConf)
    control: Literal["mimic", "cloud_submodel", "none"] = "mimic"
    normalisation: Normalisation = "batch"

    def check(self) -> None:
        """Raise ConfError for values that do not go with one another."""
        super().check()
        if self.privacy.dp != "none" and not self.normalisation.startswith("group"):
            given = f"normalisation={self.normalisation}"
            told = f"not with privacy.dp={self.privacy.dp}, whose noise breaks batch statistics"
            raise ConfError(f"{given}: {told}; use group or group_ws")


def with_submodels(conf: Conf) -> SubmodelsConf:
    """Return a configuration whose method has submodels. Raises ConfError for any other."""
    if not isinstance(conf, SubmodelsConf):
        raise ConfError(f"method.name={conf.method.name}: its base model is not cut in two")
    return conf
