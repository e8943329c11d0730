import re
import time
from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from timm.layers import StdConv2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dccl_flower.config import ConfError
from dccl_flower.image_config import BackboneConf, MimicModelConf
from dccl_flower.models import build as build_module
from dccl_flower.models import split
from dccl_flower.models.build import (
    build_base,
    build_device_modules,
    build_submodels,
)
from dccl_flower.models.control import CONTROLS, NoControl
from dccl_flower.models.frozen import copy_frozen, exchanged_state, frozen_names
from dccl_flower.models.head import find_head
from dccl_flower.models.zoo import build_model
from dccl_flower.strategies.dc_ccl.conf import DcCclConf

GREY, RGB = (1, 8, 8), (3, 32, 32)
TIMM = "timm/mobilenetv3_small_050"


def make_conf(seed=0, normalisation="batch", control="mimic", co=None, mimic=None, **model):
    backbones = {"co": BackboneConf(co), "mimic": BackboneConf(mimic)}
    return DcCclConf(
        seed=seed,
        normalisation=normalisation,
        control=control,
        model=MimicModelConf(**backbones, **model),
    )


def shapes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def same_weights(model, other):
    own, others = model.state_dict(), other.state_dict()
    return shapes(model) == shapes(other) and all(torch.equal(own[n], others[n]) for n in own)


def is_standardised(model):
    return any(isinstance(module, StdConv2d) for module in model.modules())


def has_batch_norm(model):
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def test_cloud_and_co_are_the_halves_of_one_base_model():
    submodels = build_submodels(make_conf(), GREY, 10)
    base = build_model("small_cnn", 1, 10, False, 0, "base")
    assert torch.equal(
        torch.cat([submodels.cloud.features[0].weight, submodels.co.features[0].weight]),
        base.features[0].weight,
    )
    assert (submodels.cloud.head.in_features, submodels.co.head.in_features) == (112, 16)


def test_co_ratio_moves_the_cut():
    submodels = build_submodels(make_conf(co_ratio=0.25), GREY, 10)
    assert (submodels.cloud.head.in_features, submodels.co.head.in_features) == (96, 32)


def test_the_mimic_has_the_co_submodels_architecture_and_weights_of_its_own():
    submodels = build_submodels(make_conf(), GREY, 10)
    assert shapes(submodels.mimic) == shapes(submodels.co)
    assert not torch.equal(submodels.mimic.features[0].weight, submodels.co.features[0].weight)


def test_all_three_map_images_to_logits():
    submodels = build_submodels(make_conf(), GREY, 6)
    for model in (submodels.cloud, submodels.co, submodels.mimic):
        assert model(torch.zeros(2, *GREY)).shape == (2, 6)


def test_submodels_follow_the_seed_alone():
    torch.manual_seed(1)
    first = build_submodels(make_conf(seed=5), GREY, 10)
    torch.manual_seed(2)
    again = build_submodels(make_conf(seed=5), GREY, 10)
    other = build_submodels(make_conf(seed=6), GREY, 10)
    for part in ("cloud", "co", "mimic"):
        assert same_weights(getattr(first, part), getattr(again, part))
        assert not same_weights(getattr(first, part), getattr(other, part))


def test_a_co_submodel_with_its_own_backbone_leaves_the_base_model_whole():
    submodels = build_submodels(make_conf(co=TIMM), RGB, 10)
    assert same_weights(submodels.cloud, build_model("small_cnn", 3, 10, False, 0, "base"))
    assert same_weights(submodels.co, build_model(TIMM, 3, 10, False, 0, "co"))
    assert same_weights(submodels.mimic, build_model(TIMM, 3, 10, False, 0, "mimic"))


def test_a_mimic_with_its_own_backbone_leaves_the_halves_as_they_are():
    submodels = build_submodels(make_conf(mimic=TIMM), RGB, 10)
    without = build_submodels(make_conf(), RGB, 10)
    assert same_weights(submodels.mimic, build_model(TIMM, 3, 10, False, 0, "mimic"))
    assert same_weights(submodels.cloud, without.cloud)
    assert same_weights(submodels.co, without.co)


def test_co_and_mimic_may_have_different_backbones():
    submodels = build_submodels(make_conf(co=TIMM, mimic="small_cnn"), RGB, 10)
    assert same_weights(submodels.co, build_model(TIMM, 3, 10, False, 0, "co"))
    assert same_weights(submodels.mimic, build_model("small_cnn", 3, 10, False, 0, "mimic"))


def test_group_norm_is_for_the_co_submodel_alone():
    submodels = build_submodels(make_conf(normalisation="group"), GREY, 10)
    assert not has_batch_norm(submodels.co)
    assert has_batch_norm(submodels.cloud)
    assert has_batch_norm(submodels.mimic)


@pytest.mark.parametrize("normalisation", ["batch", "batch_frozen", "batch_fused"])
def test_other_normalisations_keep_batch_norm(normalisation):
    co = build_submodels(make_conf(normalisation=normalisation), GREY, 10).co
    assert has_batch_norm(co)
    assert not is_standardised(co)


def test_weights_are_standardised_beside_group_norm_in_the_co_submodel_alone():
    submodels = build_submodels(make_conf(normalisation="group_ws"), GREY, 10)
    assert is_standardised(submodels.co)
    assert not has_batch_norm(submodels.co)
    for other in (submodels.cloud, submodels.mimic):
        assert has_batch_norm(other)
        assert not is_standardised(other)
    assert not is_standardised(build_submodels(make_conf(normalisation="group"), GREY, 10).co)


def test_standardised_weights_are_still_a_slice_of_the_base_model():
    plain, standardised = (
        build_submodels(make_conf(normalisation=kind), GREY, 10).co
        for kind in ("group", "group_ws")
    )
    assert same_weights(plain, standardised)


@pytest.mark.parametrize("co", [None, "small_cnn"])
def test_the_base_model_is_the_whole_that_the_submodels_are_cut_from(co):
    conf = make_conf(seed=3, co=co)
    base = build_base(conf, GREY, 10)
    assert same_weights(base, build_model("small_cnn", 1, 10, False, 3, "base"))
    cloud = build_submodels(conf, GREY, 10).cloud
    kept = len(cloud.features[0].weight)
    assert torch.equal(base.features[0].weight[:kept], cloud.features[0].weight)


def test_co_and_mimic_take_a_shared_stem_from_the_cloud():
    submodels = build_submodels(make_conf(shared_stem=True), GREY, 10)
    for part in (submodels.co, submodels.mimic):
        assert frozen_names(part) == ["features.0", "features.1"]
        copy_frozen(submodels.cloud, part)
        stem = part.features[0].module
        assert torch.equal(stem.weight, submodels.cloud.features[0].weight)
    assert frozen_names(submodels.cloud) == []


def test_a_shared_stem_goes_with_group_norm():
    submodels = build_submodels(make_conf(shared_stem=True, normalisation="group"), GREY, 10)
    copy_frozen(submodels.cloud, submodels.co)
    assert isinstance(submodels.co.features[1].module, nn.BatchNorm2d)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shared_stem": True},
        {"normalisation": "group"},
        {"normalisation": "group_ws"},
        {"co_ratio": 0.5},
        {"co": "small_cnn"},
    ],
)
def test_a_device_builds_the_same_architectures(options):
    conf = make_conf(**options)
    submodels = build_submodels(conf, GREY, 10)
    co, mimic = build_device_modules(conf, GREY, 10)
    assert list(exchanged_state(co)) == list(exchanged_state(submodels.co))
    assert shapes(co) == shapes(submodels.co)
    assert shapes(mimic) == shapes(submodels.mimic)


@pytest.mark.parametrize("options", [{}, {"shared_stem": True}, {"co": "vgg16_slim"}])
def test_a_device_builds_the_cloud_submodel_where_it_is_the_control(options):
    conf = make_conf(control="cloud_submodel", **options)
    submodels = build_submodels(conf, RGB, 10)
    co, control = build_device_modules(conf, RGB, 10)
    assert shapes(co) == shapes(submodels.co)
    assert shapes(control) == shapes(submodels.cloud) != shapes(submodels.mimic)


@pytest.mark.parametrize("mimic", [None, "small_cnn"])
def test_a_device_builds_the_mimic_where_it_is_the_control(mimic):
    conf = make_conf(control="mimic", mimic=mimic)
    _, control = build_device_modules(conf, GREY, 10)
    assert shapes(control) == shapes(build_submodels(conf, GREY, 10).mimic)


@pytest.mark.parametrize("options", [{}, {"shared_stem": True}, {"co": "small_cnn"}])
def test_a_device_without_control_adds_nothing(options):
    conf = make_conf(control="none", **options)
    submodels = build_submodels(conf, GREY, 10)
    co, control = build_device_modules(conf, GREY, 10)
    assert isinstance(control, NoControl)
    assert shapes(co) == shapes(submodels.co)
    assert shapes(control) == shapes(NoControl(submodels.co))
    assert torch.equal(control(torch.ones(2, *GREY)), torch.zeros(2, 10))


@pytest.mark.parametrize("control", ["mimic", "cloud_submodel", "none"])
def test_any_control_brings_the_shared_stem_to_a_device(control):
    conf = make_conf(control=control, shared_stem=True)
    submodels = build_submodels(conf, GREY, 10)
    for part in (submodels.co, submodels.mimic):
        copy_frozen(submodels.cloud, part)
    sent = {"cloud_submodel": submodels.cloud, "mimic": submodels.mimic}
    on_cloud = sent.get(control) or NoControl(submodels.co)
    co, on_device = build_device_modules(conf, GREY, 10)
    on_device.load_state_dict(on_cloud.state_dict())
    copy_frozen(on_device, co)
    assert torch.equal(co.features[0].module.weight, submodels.cloud.features[0].weight)


def recording_build(calls, name, channels, classes, pretrained, seed, purpose, **_):
    calls[purpose] = (name, pretrained)
    return build_model(name, channels, classes, False, seed, purpose)


@pytest.fixture
def calls(monkeypatch):
    calls = {}
    monkeypatch.setattr(build_module, "build_model", partial(recording_build, calls))
    return calls


def test_pretrained_weights_go_where_they_are_asked_for(calls):
    conf = make_conf(pretrained=True)
    conf.model.co = BackboneConf("small_cnn", pretrained=False)
    conf.model.mimic = BackboneConf("vgg16_cifar", pretrained=True)
    build_submodels(conf, RGB, 10)
    assert calls == {
        "base": ("small_cnn", True),
        "co": ("small_cnn", False),
        "mimic": ("vgg16_cifar", True),
    }


@pytest.mark.parametrize(
    ("control", "built"),
    [
        ("mimic", {"co", "mimic"}),
        ("cloud_submodel", {"co", "base"}),
        ("none", {"co"}),
    ],
)
def test_devices_build_what_they_need_and_never_fetch_pretrained_weights(calls, control, built):
    conf = make_conf(pretrained=True, control=control)
    conf.model.co = BackboneConf("small_cnn", pretrained=True)
    conf.model.mimic = BackboneConf("small_cnn", pretrained=True)
    build_device_modules(conf, GREY, 10)
    assert set(calls) == built
    assert not any(pretrained for _, pretrained in calls.values())
    assert conf.model.pretrained
    assert conf.model.co.pretrained


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("model.base", {"base": "resnet"}),
        ("model.co.name", {"co": "resnet"}),
        ("model.mimic.name", {"mimic": "resnet"}),
    ],
)
def test_an_unknown_model_is_refused_with_its_key(key, options):
    with pytest.raises(ConfError) as caught:
        build_submodels(make_conf(**options), (3, 32, 32), 10)
    assert str(caught.value).startswith(f"{key}=resnet: unknown model; ")


VIT = "timm/vit_tiny_patch16_224"


@pytest.mark.parametrize("error", [AssertionError, RuntimeError, IndexError, TypeError, KeyError])
@pytest.mark.parametrize(
    ("key", "options", "purpose"),
    [
        ("model.base", {"base": "vgg16_slim"}, "base"),
        ("model.base", {"base": "vgg16_slim"}, "mimic"),
        ("model.base", {"base": "vgg16_slim", "co": "small_cnn"}, "base"),
        ("model.co.name", {"co": "vgg16_slim"}, "co"),
        ("model.co.name", {"co": "vgg16_slim"}, "mimic"),
        ("model.mimic.name", {"mimic": "vgg16_slim"}, "mimic"),
    ],
)
@pytest.mark.parametrize("build_or_run", ["build", "run"])
def test_whatever_a_library_raises_is_one_line_with_the_key(
    monkeypatch, error, key, options, purpose, build_or_run
):
    def build(*args, **options):
        model = build_model(*args, **options)
        if args[-1] == purpose:
            if build_or_run == "build":
                raise error("its reason\nand more")
            model.features.register_forward_pre_hook(fail)
        return model

    def fail(*_):
        raise error("its reason\nand more")

    monkeypatch.setattr(build_module, "build_model", build)
    with pytest.raises(ConfError) as caught:
        build_submodels(make_conf(**options), RGB, 10)
    said = str(caught.value)
    assert said.startswith(f"{key}=vgg16_slim: does not go with images (3, 32, 32) (")
    assert "its reason" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_what_no_model_is_to_blame_for_passes(monkeypatch, error):
    def build(*_, **__):
        raise error

    monkeypatch.setattr(build_module, "build_model", build)
    for built in (build_submodels, build_device_modules, build_base):
        with pytest.raises(error):
            built(make_conf(), GREY, 10)


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("model.base", {"base": VIT}),
        ("model.base", {"base": VIT, "co": "small_cnn", "control": "cloud_submodel"}),
        ("model.co.name", {"co": VIT}),
        ("model.co.name", {"co": VIT, "mimic": "small_cnn"}),
        ("model.mimic.name", {"mimic": VIT}),
    ],
)
def test_a_model_of_another_image_size_is_refused_by_cloud_and_device_alike(key, options):
    for built in (build_submodels, build_device_modules):
        with pytest.raises(ConfError) as caught:
            built(make_conf(**options), (3, 8, 8), 10)  # smaller than a patch
        assert str(caught.value).startswith(f"{key}={VIT}: does not go with images (3, 8, 8) (")


class Twins(nn.Module):
    def __init__(self, when_training):
        super().__init__()
        self.net, self.when_training = nn.Linear(64, 10), when_training

    def forward(self, x):
        logits = self.net(x.flatten(1))
        return (logits, logits) if self.training == self.when_training else logits


@pytest.mark.parametrize("when_training", [True, False])
def test_a_model_that_gives_something_else_than_logits_is_refused(monkeypatch, when_training):
    monkeypatch.setattr(build_module, "build_model", lambda *_, **__: Twins(when_training))
    for built in (build_base, build_device_modules):
        with pytest.raises(ConfError) as caught:
            built(make_conf(co="small_cnn", control="cloud_submodel"), GREY, 10)
        assert "_cnn: does not go with images (1, 8, 8) (gives tuple, expected logits (2, 10))" in (
            str(caught.value)
        )


@pytest.mark.parametrize("name", ["small_cnn", "timm/resnet10t", "torchvision/mobilenet_v3_small"])
def test_weights_of_a_file_are_the_base_model_s_and_its_head_is_new(tmp_path, name):
    size, file = (3, 32, 32), str(tmp_path / "weights.safetensors")
    trained = build_model(name, 3, 7, False, 5, "elsewhere")
    save_file(trained.state_dict(), file)
    base = build_base(make_conf(base=name, weights=file), size, 10)
    head = find_head(base)[0]
    for key, tensor in base.state_dict().items():
        if not key.startswith(f"{head}."):
            assert torch.equal(tensor, trained.state_dict()[key]), key
    assert base.get_submodule(head).out_features == 10
    whole = build_base(make_conf(base=name, weights=file), size, 7)
    assert same_weights(whole, trained)


@pytest.mark.parametrize("name", ["small_cnn", "timm/resnet10t"])
def test_weights_that_do_not_fit_are_blamed_on_their_file(tmp_path, name):
    file = tmp_path / "weights.safetensors"
    conf = make_conf(base=name, weights=str(file))
    blamed = re.escape(f"model.weights={file}: cannot be loaded (")
    for content in (None, b"no such thing"):
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(ConfError, match=f"^{blamed}"):
            build_base(conf, RGB, 10)
    save_file(build_model("vgg16_slim", 3, 10, False, 0, "other").state_dict(), str(file))
    with pytest.raises(ConfError, match=f"^{blamed}"):
        build_base(conf, RGB, 10)
    build_device_modules(conf, RGB, 10)  # which fetches nothing


def test_a_model_that_cannot_be_cut_is_refused_by_cloud_and_device_alike():
    for built in (build_submodels, build_device_modules):
        with pytest.raises(
            ConfError, match=r"^model.base=timm/ghostnet_050: cannot be cut by width"
        ):
            built(make_conf(base="timm/ghostnet_050"), (3, 64, 64), 10)


def test_a_model_found_wrong_by_its_shapes_alone_is_built_once(monkeypatch):
    built = []

    def one_channel(name, *_, **__):
        built.append(name)
        layers = nn.Conv2d(3, 1, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 10)
        return nn.Sequential(*layers)

    monkeypatch.setattr(build_module, "build_model", one_channel)
    with pytest.raises(ConfError, match="layer 0 is too narrow to cut: 1 wide"):
        build_device_modules(make_conf(), RGB, 10)
    assert built == ["small_cnn"]


def test_a_model_whose_layers_take_too_long_to_sort_is_refused(monkeypatch):
    monkeypatch.setattr(split, "CUT_SECONDS", 0.2)
    monkeypatch.setattr(split, "trace", lambda *_: time.sleep(60))
    told = r"cannot be cut by width; set model.co.name \(took longer than 0.2 seconds\)$"
    with pytest.raises(ConfError, match=told):
        build_submodels(make_conf(), GREY, 10)


def test_two_heads_are_refused_with_the_key():
    for built in (build_submodels, build_device_modules):
        with pytest.raises(ConfError) as caught:
            built(make_conf(co="timm/deit_tiny_distilled_patch16_224"), (3, 224, 224), 10)
        assert str(caught.value).startswith("model.co.name=timm/deit_tiny_distilled_patch16_224: ")


def test_trying_a_model_changes_nothing_in_it():
    torch.manual_seed(3)
    draws = torch.random.get_rng_state()
    submodels = build_submodels(make_conf(co=TIMM), RGB, 10)
    assert torch.equal(torch.random.get_rng_state(), draws)
    for model in (submodels.cloud, submodels.co, submodels.mimic):
        assert all(module.training for module in model.modules())
        counters = [t for n, t in model.state_dict().items() if n.endswith("batches_tracked")]
        assert not any(counters)


@pytest.mark.parametrize("control", ["mimic", "cloud_submodel", "none"])
def test_devices_cut_a_base_model_with_parameters_of_its_own(control):
    conf, shape = make_conf(base="timm/convnext_atto", control=control), (3, 64, 64)
    submodels = build_submodels(conf, shape, 10)
    co, on_device = build_device_modules(conf, shape, 10)
    assert shapes(co) == shapes(submodels.co)
    sent = CONTROLS[control](submodels)
    assert shapes(on_device) == shapes(sent)
    on_device.load_state_dict(sent.state_dict())
    assert torch.equal(on_device(torch.ones(2, *shape)), sent.eval()(torch.ones(2, *shape)))


class Peculiar(nn.Module):
    """A net that computes with what its state leaves out, or with one tensor under two names."""

    def __init__(self, kind):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 1)
        self.second = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 10)
        self.factor = None
        if kind == "loose":
            self.factor = torch.full((1,), 3.0)
        elif kind == "unsaved":
            del self.factor
            self.register_buffer("factor", torch.full((1,), 3.0), persistent=False)
        else:
            self.third = nn.Conv2d(4, 4, 1)
            self.third.weight = self.second.weight

    def forward(self, x):
        h = self.second(self.first(x))
        h = self.third(h) if self.factor is None else h * self.factor
        return self.head(h.mean((2, 3)))


@pytest.mark.parametrize("kind", ["loose", "unsaved", "tied"])
def test_a_device_computes_with_what_the_wire_leaves_out(monkeypatch, kind):
    monkeypatch.setattr(build_module, "build_model", lambda *_, **__: Peculiar(kind))
    conf = make_conf(co="small_cnn")
    submodels, (co, _) = build_submodels(conf, GREY, 10), build_device_modules(conf, GREY, 10)
    co.load_state_dict(submodels.co.state_dict())
    images = torch.randn(2, *GREY)
    assert torch.equal(co(images), submodels.co(images))
    assert len(list(co.parameters())) == len(list(submodels.co.parameters()))
