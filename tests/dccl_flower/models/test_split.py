from copy import deepcopy
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.vgg import VGG, make_layers

from dccl_flower.config import ConfError
from dccl_flower.models.frozen import Frozen, exchanged_state
from dccl_flower.models.head import find_head
from dccl_flower.models.split import co_channels, narrow, slice_cloud, slice_co, stem_names
from dccl_flower.models.zoo import PlainCNN, build_model

CLASSES = 5
# Name, image shape, and (cloud, co) channels of the first and of the last convolution.
CASES = [
    ("small_cnn", (1, 8, 8), (56, 8), (112, 16)),
    ("vgg16_cifar", (3, 32, 32), (56, 8), (448, 64)),
    ("narrow torchvision VGG", (3, 32, 32), (14, 2), (28, 4)),
    ("torchvision/resnet18", (3, 32, 32), (56, 8), (448, 64)),
    ("torchvision/mobilenet_v3_small", (3, 32, 32), (14, 2), (504, 72)),
    ("timm/resnet18", (3, 32, 32), (56, 8), (448, 64)),
    ("timm/mobilenetv3_small_050", (3, 32, 32), (14, 2), (896, 128)),
]
every_model = pytest.mark.parametrize(("name", "shape"), [case[:2] for case in CASES])


def narrow_vgg():
    """Torchvision's VGG with few channels and without its 4096 hidden units."""
    with torch.device("meta"):
        model = VGG(nn.Identity(), num_classes=CLASSES)
    model.features = make_layers([16, "M", 32, "M"])
    hidden = [nn.Linear(32 * 49, 24), nn.ReLU(), nn.Dropout(), nn.Linear(24, CLASSES)]
    model.classifier = nn.Sequential(*hidden)
    return model


def scramble(model):
    """Give every tensor values of its own, running statistics and head bias too."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.normal_(generator=generator)
            if name.endswith("running_var"):
                tensor.abs_().add_(0.1)
    return model


def build(name, shape):
    if "narrow" in name:
        return scramble(narrow_vgg())
    return scramble(build_model(name, shape[0], CLASSES, False, 0, "test"))


@cache
def halves(name, shape, co_ratio=0.125, shared_stem=False):
    base = build(name, shape)
    how = (base, torch.zeros(2, *shape), co_ratio, shared_stem)
    return base, slice_cloud(*how), slice_co(*how)


def convolutions(model):
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


def first_part(tensor, shape):
    return tensor[tuple(slice(size) for size in shape)]


def last_part(tensor, shape):
    return tensor[
        tuple(slice(full - size, full) for full, size in zip(tensor.shape, shape, strict=True))
    ]


@every_model
def test_both_halves_map_images_to_logits_of_every_class(name, shape):
    images = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    for half in halves(name, shape)[1:]:
        with torch.no_grad():
            logits = deepcopy(half).eval()(images)
        assert logits.shape == (3, CLASSES)


@pytest.mark.parametrize(("name", "shape", "first", "last"), CASES)
def test_seven_eighths_of_the_channels_go_to_the_cloud(name, shape, first, last):
    _, cloud, co = halves(name, shape)
    ends = [(convolutions(half)[0], convolutions(half)[-1]) for half in (cloud, co)]
    (cloud_first, cloud_last), (co_first, co_last) = ends
    assert (cloud_first.out_channels, co_first.out_channels) == first
    assert (cloud_last.out_channels, co_last.out_channels) == last


@every_model
def test_each_half_keeps_its_end_of_every_tensor_of_the_base(name, shape):
    base, cloud, co = (half.state_dict() for half in halves(name, shape))
    assert list(base) == list(cloud) == list(co)
    head_bias = f"{find_head(halves(name, shape)[0])[0]}.bias"
    for key, tensor in base.items():
        if not tensor.is_floating_point() or key == head_bias:
            continue
        assert torch.equal(cloud[key], first_part(tensor, cloud[key].shape)), key
        assert torch.equal(co[key], last_part(tensor, co[key].shape)), key


@every_model
def test_the_halves_share_out_all_channels_between_them(name, shape):
    base, cloud, co = halves(name, shape)
    head_name, _ = find_head(base)
    for key, module in base.named_modules():
        parts = [half.get_submodule(key) for half in (cloud, co)]
        if isinstance(module, nn.Conv2d | nn.Linear) and key != head_name:
            assert sum(len(part.weight) for part in parts) == len(module.weight), key
        if isinstance(module, nn.Linear):
            assert sum(part.in_features for part in parts) == module.in_features, key
        if isinstance(module, _BatchNorm):
            assert sum(part.num_features for part in parts) == module.num_features, key


@every_model
def test_the_heads_bias_goes_to_the_cloud_alone(name, shape):
    base, cloud, co = (find_head(half)[1] for half in halves(name, shape))
    assert torch.equal(cloud.bias, base.bias)
    assert torch.equal(co.bias, torch.zeros(CLASSES))


def test_small_cnn_is_cut_at_the_channels_counted_by_hand():
    base, cloud, co = (half.state_dict() for half in halves("small_cnn", (1, 8, 8)))
    first, inner, head = "features.0.weight", "features.3.weight", "head.weight"
    assert torch.equal(cloud[first], base[first][:56])
    assert torch.equal(co[first], base[first][56:])
    assert torch.equal(cloud[inner], base[inner][:56, :56])
    assert torch.equal(co[inner], base[inner][56:, 56:])
    assert torch.equal(cloud[head], base[head][:, :112])
    assert torch.equal(co[head], base[head][:, 112:])
    assert torch.equal(co["features.1.running_mean"], base["features.1.running_mean"][56:])


def test_the_base_model_stays_whole():
    base = build("small_cnn", (1, 8, 8))
    before = {key: tensor.clone() for key, tensor in base.state_dict().items()}
    for half in (slice_cloud, slice_co):
        half(base, torch.ones(2, 1, 8, 8), 0.25)
    after = base.state_dict()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


def test_halves_share_no_memory_and_are_ready_to_train():
    _, cloud, co = halves("small_cnn", (1, 8, 8))
    addresses = [{tensor.data_ptr() for tensor in h.state_dict().values()} for h in (cloud, co)]
    assert addresses[0].isdisjoint(addresses[1])
    for half in (cloud, co):
        assert half.training
        assert all(p.requires_grad and p.grad is None for p in half.parameters())


def test_another_ratio_moves_the_cut():
    _, cloud, co = halves("small_cnn", (1, 8, 8), co_ratio=0.25)
    assert [conv.out_channels for conv in convolutions(co)] == [16, 16, 32, 32]
    assert [conv.out_channels for conv in convolutions(cloud)] == [48, 48, 96, 96]


@pytest.mark.parametrize("half", [slice_cloud, slice_co])
def test_a_layer_of_one_channel_cannot_be_cut(half):
    with pytest.raises(ConfError, match=r"^layer features\.3 is too narrow to cut: 1 wide$"):
        half(PlainCNN([4, 1], 3, CLASSES), torch.zeros(2, 3, 8, 8), 0.5)


@pytest.mark.parametrize(
    ("channels", "ratio", "expected"),
    [(64, 0.125, 8), (20, 0.2, 4), (4, 0.125, 1), (64, 0.001, 1), (2, 0.99, 1), (64, 0.999, 63)],
)
def test_the_co_submodel_gets_at_least_one_channel_and_never_all(channels, ratio, expected):
    assert co_channels(channels, ratio) == expected


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (PlainCNN([4, 4], 3, CLASSES), ["features.0", "features.1"]),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), ["0"]),
        (nn.Sequential(nn.Flatten(), nn.Sequential(nn.Conv2d(3, 4, 3))), ["1.0"]),
    ],
)
def test_the_stem_is_the_first_convolution_and_the_norm_right_behind_it(model, expected):
    assert stem_names(model) == expected


@pytest.fixture(scope="module")
def shared():
    return halves("vgg16_cifar", (3, 32, 32), shared_stem=True)


def test_a_shared_stem_stays_at_full_width_in_both_halves(shared):
    base, cloud, co = shared
    for place in (0, 1):
        frozen = co.features[place]
        assert isinstance(frozen, Frozen)
        stem = base.features[place].state_dict()
        for found in (cloud.features[place].state_dict(), frozen.module.state_dict()):
            assert all(torch.equal(found[key], tensor) for key, tensor in stem.items())
    assert (cloud.features[0].out_channels, co.features[0].module.out_channels) == (64, 64)


def test_a_shared_stem_is_frozen_in_the_co_submodel_alone(shared):
    _, cloud, co = shared
    assert all(p.requires_grad for p in cloud.parameters())
    fixed = [name for name, p in co.named_parameters() if not p.requires_grad]
    stem = ["features.0.module.weight", "features.1.module.weight", "features.1.module.bias"]
    assert fixed == stem
    assert not any(name.startswith(("features.0.", "features.1.")) for name in exchanged_state(co))


def test_the_layer_behind_a_shared_stem_reads_all_of_its_channels(shared):
    base, cloud, co = shared
    weight = base.features[3].weight
    assert torch.equal(cloud.features[3].weight, weight[:56])
    assert torch.equal(co.features[3].weight, weight[56:])


def test_an_eighth_of_vgg16_with_a_shared_stem_has_a_quarter_million_parameters(shared):
    widths = [8, 16, 16, 32, 32, 32, *[64] * 6]
    inputs = [64, *widths[:-1]]
    stem = 9 * 3 * 64 + 2 * 64
    body = sum(9 * i * o + 2 * o for i, o in zip(inputs, widths, strict=True))
    head = 64 * CLASSES + CLASSES
    count = sum(p.numel() for p in shared[2].parameters())
    assert count == stem + body + head
    assert round(count / 1e6, 2) == 0.24


def test_both_halves_with_a_shared_stem_map_images_to_logits(shared):
    for half in shared[1:]:
        assert half(torch.ones(2, 3, 32, 32)).shape == (2, CLASSES)


@pytest.mark.parametrize("half", [slice_cloud, slice_co])
@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/resnet18"])
def test_a_shared_stem_is_refused_where_other_layers_are_coupled_to_it(name, half):
    with pytest.raises(ConfError) as caught:
        half(build(name, (3, 32, 32)), torch.zeros(2, 3, 32, 32), 0.125, True)
    assert str(caught.value).startswith("model.shared_stem=true: conv1 is coupled to 2 other")


@pytest.mark.parametrize("name", ["small_cnn", "narrow torchvision VGG", "torchvision/resnet18"])
def test_a_narrow_co_submodel_holds_the_leading_channels_and_runs(name):
    shape = next(case[1] for case in CASES if case[0] == name)
    base = narrow_vgg() if "narrow" in name else build_model(name, shape[0], CLASSES, False, 0, "t")
    example = torch.zeros(2, *shape)
    co = slice_co(base, example, 0.25)
    small = narrow(co, example, 0.5)
    wide, state = exchanged_state(co), exchanged_state(small)
    assert list(state) == list(wide)
    for key, tensor in state.items():
        assert torch.equal(tensor, wide[key][tuple(slice(size) for size in tensor.shape)]), key
    convolutions = [k for k, t in state.items() if t.dim() == 4]
    assert all(2 * len(state[key]) == len(wide[key]) for key in convolutions)
    assert small(torch.randn(2, *shape)).shape == (2, CLASSES)


def test_a_narrow_co_submodel_keeps_the_shared_stem_whole():
    base = build_model("vgg16_slim", 3, CLASSES, False, 0, "t")
    example = torch.zeros(2, 3, 32, 32)
    co = slice_co(base, example, 0.25, shared_stem=True)
    small = narrow(co, example, 0.5)
    stem = stem_names(base)[0]
    assert torch.equal(
        small.get_submodule(stem).module.weight, co.get_submodule(stem).module.weight
    )
    assert len(exchanged_state(small)) == len(exchanged_state(co))


def test_the_whole_share_is_a_copy():
    co = slice_co(build_model("small_cnn", 1, CLASSES, False, 0, "t"), torch.zeros(2, 1, 8, 8), 0.5)
    same = narrow(co, torch.zeros(2, 1, 8, 8), 1.0)
    assert same is not co
    assert all(torch.equal(same.state_dict()[n], t) for n, t in co.state_dict().items())
