import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dccl_flower.config import ConfError
from dccl_flower.models.attention import ImageAttention, PartitionedLinear
from dccl_flower.models.head import find_head

FEATURES, CLASSES = 16, 5
SPLITS = [(1, True), (2, True), (4, False), (8, True), (16, True), (16, False)]
every_split = pytest.mark.parametrize(("partitions", "shuffle"), SPLITS)


def build(seed=0, **options):
    """A module whose biases and norms have values of their own too, so that none cancels."""
    torch.manual_seed(seed)
    model = ImageAttention(**{"features": FEATURES, "num_classes": CLASSES, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def images(*shape, seed=1):
    return torch.randn(*shape, FEATURES, generator=torch.Generator().manual_seed(seed))


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def dense(linear):
    """The D x D matrix of a partitioned map, entry by entry."""
    partitions, width = linear.weight.shape[:2]
    matrix = torch.zeros(partitions * width, partitions * width)
    for part in range(partitions):
        for row in range(width):
            place = row * partitions + part if linear.shuffle else part * width + row
            matrix[place, part * width : (part + 1) * width] = linear.weight[part, row]
    return matrix


def torch_layer(layer, heads, dropout):
    """Torch's own encoder layer with the same weights, its projections unsplit."""
    attend, feed = layer
    own = nn.TransformerEncoderLayer(FEATURES, heads, FEATURES, dropout, batch_first=True)
    qkv = (attend.block.q, attend.block.k, attend.block.v)
    with torch.no_grad():
        own.self_attn.in_proj_weight.copy_(torch.cat([dense(linear) for linear in qkv]))
        own.self_attn.in_proj_bias.copy_(torch.cat([linear.bias for linear in qkv]))
        for linear, mine in (
            (own.self_attn.out_proj, attend.block.out),
            (own.linear1, feed.block[0]),
            (own.linear2, feed.block[-1]),
        ):
            linear.weight.copy_(dense(mine))
            linear.bias.copy_(mine.bias)
    own.norm1.load_state_dict(attend.norm.state_dict())
    own.norm2.load_state_dict(feed.norm.state_dict())
    return own


def torch_layers(model, heads=4, dropout=0.0):
    return nn.Sequential(*(torch_layer(layer, heads, dropout) for layer in model.layers))


def rounded(number, like):
    """Write a number with the unit and the places of another."""
    value, unit = like.split()
    places = len(value.partition(".")[2])
    return f"{number / {'M': 1e6, 'G': 1e9}[unit]:.{places}f} {unit}"


@pytest.mark.parametrize(
    ("features", "partitions", "extra_parameters", "extra_macs"),
    [
        (1280, 1, "30 M", "0.47 G"),
        (1280, 256, "0.14 M", "3.8 M"),
        (2048, 1, "76 M", "1.2 G"),
        (2048, 256, "0.33 M", "7.9 M"),
        (1024, 1, "19 M", "0.30 G"),
        (1024, 256, "0.09 M", "2.8 M"),
    ],
)
def test_costs_are_the_published_ones(features, partitions, extra_parameters, extra_macs):
    """MobileNetV3-L, ResNet-152 and Swin-B in Table 1, which leaves the norms out."""
    layers, batch = 3, 16
    options = {"features": features, "partitions": partitions, "layers": layers}
    with torch.device("meta"):
        added = ImageAttention(num_classes=1000, **options).layers
        control = ImageAttention(num_classes=1000, attention=False, **options).layers
        counted = FlopCounterMode(display=False)
        with counted, torch.no_grad():
            added.eval()(torch.zeros(batch, features))
    split, norm = features * features // partitions, 2 * features
    projections = layers * 6 * (split + features)
    macs = layers * (6 * batch * split + 2 * batch * batch * features)
    assert count(added) == projections + layers * 2 * norm
    assert count(control) == projections + layers * 3 * norm
    assert counted.get_total_flops() == 2 * macs
    assert rounded(projections, extra_parameters) == extra_parameters
    assert rounded(macs, extra_macs) == extra_macs


def test_a_map_in_two_parts_by_hand():
    linear = PartitionedLinear(4, partitions=2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[[1.0, 2], [3, 4]], [[5, 6], [7, 8]]]))
        linear.bias.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    # The parts give (1 - 2, 3 - 4) and (10 + 6, 14 + 8).
    features = torch.tensor([1.0, -1, 2, 1])
    torch.testing.assert_close(linear(features), torch.tensor([-0.9, 16.2, -0.7, 22.4]))
    linear.shuffle = False
    torch.testing.assert_close(linear(features), torch.tensor([-0.9, -0.8, 16.3, 22.4]))


@every_split
def test_a_map_is_that_of_its_dense_matrix(partitions, shuffle):
    linear = PartitionedLinear(FEATURES, partitions=partitions, shuffle=shuffle)
    features = images(2, 3)
    expected = nn.functional.linear(features, dense(linear), linear.bias)
    torch.testing.assert_close(linear(features), expected)


@every_split
@pytest.mark.parametrize("heads", [1, 4])
def test_layers_compute_and_learn_what_torchs_own_do(partitions, shuffle, heads):
    model = build(layers=2, heads=heads, partitions=partitions, shuffle=shuffle, dropout=0.0)
    own, mine = images(3, 7).requires_grad_(), images(3, 7).requires_grad_()
    expected = torch_layers(model, heads).train()(own)
    features = model.layers(mine)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)
    weights = images(3, 7, seed=2)
    (expected * weights).sum().backward()
    (features * weights).sum().backward()
    torch.testing.assert_close(mine.grad, own.grad, atol=1e-5, rtol=0)


def test_dropout_is_where_torchs_own_layers_have_it():
    model = build(layers=2, dropout=0.4).train()
    own = torch_layers(model, dropout=0.4).train()
    features = images(1, 7)
    torch.manual_seed(3)
    expected = own(features)
    torch.manual_seed(3)
    torch.testing.assert_close(model.layers(features), expected, atol=1e-5, rtol=0)


def test_dropout_is_for_training_alone():
    model, features = build(dropout=0.5), images(6)
    assert torch.equal(model(features), model(features))
    model.train()
    assert not torch.equal(model(features), model(features))


def test_logits_are_the_heads_of_what_is_positive_in_the_features():
    model, features = build(layers=2), images(6)
    assert find_head(model) == ("head", model.head)
    torch.testing.assert_close(model(features), model.head(model.layers(features).clamp(min=0)))


@settings(deadline=None, max_examples=40)
@given(
    order=st.integers(1, 9).flatmap(lambda size: st.permutations(range(size))),
    partitions=st.sampled_from([1, 2, 4, 8, 16]),
    heads=st.sampled_from([1, 2, 4, 8]),
    shuffle=st.booleans(),
    attention=st.booleans(),
    seed=st.integers(0, 99),
)
def test_images_have_no_order(order, seed, **options):
    model = build(seed, layers=2, **options).double()
    features = images(len(order), seed=seed).double()
    torch.testing.assert_close(model(features[order]), model(features)[order])


def test_clients_are_apart():
    model, features = build(partitions=4), images(3, 5)
    alone = torch.stack([model(client) for client in features])
    torch.testing.assert_close(model(features), alone)


def test_an_image_alone_attends_to_itself():
    attend = build(partitions=4).layers[0][0].block
    features = images(1)
    torch.testing.assert_close(attend(features), attend.out(attend.v(features)))


@pytest.mark.parametrize("attention", [True, False])
def test_only_with_attention_do_images_see_each_other(attention):
    model, features = build(partitions=2, attention=attention), images(4)
    assert torch.allclose(model(features)[:1], model(features[:1])) is not attention


def test_layers_start_as_copies_that_learn_apart():
    first, second = ImageAttention(features=8, num_classes=2, layers=2).layers
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one is not other


def test_weights_start_as_published():
    """Xavier's bounds for the attention, whose q, k and v count as one map; else as nn.Linear."""
    torch.manual_seed(0)
    layer = ImageAttention(features=256, num_classes=2, partitions=4).layers[0]
    attend, feed = layer[0].block, layer[1].block
    bounds = [
        *((linear, (6 / (64 + 192)) ** 0.5) for linear in (attend.q, attend.k, attend.v)),
        (attend.out, (6 / (64 + 64)) ** 0.5),
        *((linear, 64**-0.5) for linear in (feed[0], feed[-1])),
    ]
    for linear, bound in bounds:
        for part in linear.weight:
            assert part.abs().max().item() == pytest.approx(bound, rel=0.01)
            assert part.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert not any(linear.bias.any() for linear in (attend.q, attend.k, attend.v, attend.out))
    assert feed[0].bias.abs().max().item() == pytest.approx(64**-0.5, rel=0.05)


@pytest.mark.parametrize(
    ("key", "value"), [("partitions", 3), ("partitions", 0), ("heads", 5), ("heads", -4)]
)
def test_what_does_not_divide_the_features_is_refused(key, value):
    with pytest.raises(ConfError) as caught:
        ImageAttention(features=64, num_classes=2, **{key: value})
    assert str(caught.value) == f"{key}={value}: must divide the 64 features"
