import pytest
import torch
import torchvision
from torch import nn

from dccl_flower.config import ConfError
from dccl_flower.models.zoo import OWN_MODELS, OwnImages, build_model, check_model, own_images

BUILT = ["small_cnn", "torchvision/mobilenet_v3_small", "timm/mobilenetv3_small_050"]


def build(name="small_cnn", in_channels=3, num_classes=4, seed=0, purpose="base"):
    return build_model(name, in_channels, num_classes, False, seed, purpose)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize(
    ("name", "in_channels", "size"),
    [
        ("small_cnn", 1, 8),
        ("small_cnn", 3, 28),
        ("vgg16_cifar", 3, 32),
        ("vgg16_slim", 3, 32),
        ("torchvision/mobilenet_v3_small", 3, 32),
        ("timm/mobilenetv3_small_050", 1, 32),
        ("timm/resnet18", 2, 32),
    ],
)
def test_images_become_logits(name, in_channels, size):
    model = build(name, in_channels, num_classes=7)
    assert model(torch.zeros(2, in_channels, size, size)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        ("small_cnn", [64, 64, 128, 128]),
        ("vgg16_cifar", [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]),
        ("vgg16_slim", [16, 16, 32, 32, 64, 64, 64, 128, 128, 128, 128, 128, 128]),
    ],
)
def test_our_own_nets_have_the_parameters_counted_by_hand(name, widths):
    inputs = [3, *widths[:-1]]
    body = sum(9 * i * o + 2 * o for i, o in zip(inputs, widths, strict=True))
    head = widths[-1] * 10 + 10
    assert sum(p.numel() for p in build(name, num_classes=10).parameters()) == body + head


def test_vgg16_slim_has_0_92_million_parameters():
    assert sum(p.numel() for p in build("vgg16_slim", num_classes=10).parameters()) == 923130


def test_convolutions_start_with_the_deviation_of_he():
    weight = build().features[3].weight
    # 64 output channels times nine pixels fan out.
    assert weight.std().item() == pytest.approx((2 / 576) ** 0.5, rel=0.03)


@pytest.mark.parametrize("name", BUILT)
def test_initial_weights_do_not_depend_on_the_global_generator(name):
    torch.manual_seed(1)
    first = weights(build(name))
    torch.manual_seed(2)
    assert torch.equal(weights(build(name)), first)


@pytest.mark.parametrize("name", BUILT)
def test_building_leaves_the_global_generator_alone(name):
    state = torch.random.get_rng_state()
    build(name)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("change", [{"seed": 1}, {"purpose": "mimic"}])
def test_initial_weights_depend_on_seed_and_purpose(change):
    assert not torch.equal(weights(build(**change)), weights(build()))


@pytest.mark.parametrize(
    ("name", "in_channels"),
    [
        *[(name, 1) for name in OWN_MODELS],
        ("timm/resnet18", 1),
        ("timm/resnet18", 3),
        ("torchvision/resnet18", 3),
    ],
)
def test_known_models_pass(name, in_channels):
    check_model("model.base", name, in_channels)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "resnet18",
        "small_cnn/x",
        "timm",
        "timm/",
        "timm/no_such",
        "tim/resnet18",
        "torchvision",
        "torchvision/no_such",
        "torchvision/raft_large",
    ],
)
@pytest.mark.parametrize("in_channels", [1, 3])
def test_unknown_models_are_refused_with_key_and_choice(name, in_channels):
    with pytest.raises(ConfError) as caught:
        check_model("model.co.name", name, in_channels)
    assert str(caught.value) == (
        f"model.co.name={name}: unknown model; "
        "allowed are small_cnn, vgg16_cifar, vgg16_half, vgg16_slim, timm/*, torchvision/*"
    )


def test_torchvision_models_are_refused_for_grey_images():
    with pytest.raises(ConfError) as caught:
        check_model("model.base", "torchvision/resnet18", 1)
    assert str(caught.value) == (
        "model.base=torchvision/resnet18: torchvision models take RGB images; set data.rgb=true"
    )


def test_a_pretrained_torchvision_model_gets_a_head_of_our_classes(monkeypatch):
    def get_model(name, weights):
        assert weights == "DEFAULT"
        return nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 1000))

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    model = build_model("torchvision/any", 3, 4, True, 0, "base")
    assert (model[0].out_features, model[2].in_features, model[2].out_features) == (6, 6, 4)


def test_libraries_say_what_images_their_models_were_made_for():
    assert own_images("timm/tf_efficientnetv2_l").mean == (0.5, 0.5, 0.5)
    assert own_images("timm/swinv2_tiny_window8_256").size == (256, 256)
    assert own_images("torchvision/mobilenet_v3_large") == OwnImages(
        (224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )
    assert own_images("vgg16_cifar") == OwnImages((32, 32))


def test_torchvision_s_transformers_are_built_for_the_size_of_the_images():
    model = build_model("torchvision/vit_b_16", 3, 4, False, 0, "base", size=(32, 32))
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 4)
