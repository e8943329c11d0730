from copy import deepcopy

import pytest
import torch
from timm.layers import Linear as TimmLinear
from torch import nn
from torch.nn import functional

from dccl_flower.config import ConfError
from dccl_flower.models import head as head_module
from dccl_flower.models.frozen import Frozen
from dccl_flower.models.head import find_head
from dccl_flower.models.split import slice_cloud, slice_co
from dccl_flower.models.zoo import build_model

IMAGES = torch.zeros(2, 3, 4, 4)


class Net(nn.Module):
    """A net whose auxiliary layer is registered last; ``use`` makes logits of what it has."""

    def __init__(self, use, head=None):
        super().__init__()
        self.use = use
        self.conv, self.norm = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)
        self.hidden, self.fc = nn.Linear(6, 6), head or nn.Linear(6, 5)
        self.scale, self.tail = nn.Parameter(torch.ones(5)), nn.LogSoftmax(1)
        self.last = nn.BatchNorm1d(5)
        self.aux = nn.Linear(6, 5)

    def forward(self, x):
        features = self.norm(self.conv(x)).mean((2, 3))
        return self.use(self, torch.relu(self.hidden(features)))


def plain(net, h):
    return net.fc(h)


def in_two_steps(net, h):
    aux = net.aux(h)
    return net.fc(h + aux.mean())


def reading_values(net, h):
    """Code that no trace can follow, since it asks for the size of a batch."""
    return net.fc(h) if len(list(range(len(h)))) > 1 else net.aux(h)


@pytest.mark.parametrize(
    "use",
    [
        plain,
        in_two_steps,
        lambda net, h: net.tail(net.fc(h)),
        lambda net, h: functional.dropout(net.fc(h), 0.5, net.training).clone(),
        lambda net, h: net.fc(h).view(h.size(0), -1),
        lambda net, h: net.fc(h).reshape(h.shape[0], 5).contiguous(),
        lambda net, h: net.fc(h) * net.scale + 1,
        lambda net, h: net.scale.add(net.fc(h)) / 2,
        lambda net, h: net.fc(h.unsqueeze(1)).squeeze(1),
        lambda net, h: net.aux(h) if net.training else net.fc(h),
    ],
)
def test_the_head_is_what_gives_the_logits_and_not_what_is_registered_last(use):
    net = Net(use)
    assert find_head(net) == ("fc", net.fc)


@pytest.mark.parametrize("head", [TimmLinear(6, 5), nn.Sequential(nn.Linear(6, 5), nn.ReLU())])
def test_the_head_may_be_of_another_kind_or_lie_deeper(head):
    net = Net(plain, head)
    assert find_head(net)[0] == ("fc" if isinstance(head, TimmLinear) else "fc.0")


def test_a_frozen_part_is_looked_into():
    assert find_head(nn.Sequential(nn.Linear(3, 4), Frozen(nn.Linear(4, 2))))[0] == "1.module"


@pytest.mark.parametrize(
    ("use", "sources"),
    [
        (lambda net, h: (net.fc(h), net.aux(h)), "a tuple of fc, aux"),
        (lambda net, h: {"logits": net.fc(h)}, "a dict of fc"),
        (lambda net, h: net.fc(h) + net.aux(h), "fc, aux"),
        (lambda net, h: net.fc(h).add_(net.aux(h)), "fc, aux"),
        (lambda net, h: net.fc(h) * torch.sigmoid(net.aux(h)), "fc, aux"),
        (lambda net, h: torch.stack([net.fc(h), net.aux(h)]).mean(0), "fc, aux"),
        (lambda net, h: net.last(net.fc(h)), "last (BatchNorm1d)"),
        (lambda net, h: h @ net.aux.weight.T, "aux.weight"),
        (lambda net, h: functional.linear(h, net.fc.weight), "fc.weight"),
        (lambda net, h: h @ (net.aux.weight * 2).T, "aux.weight"),
        (lambda net, h: net.aux.weight.sum(1).view(1, 5), "aux.weight"),
        (lambda net, h: torch.outer(net.fc(h)[:, 0], net.scale), "scale"),
    ],
)
def test_logits_of_no_one_linear_layer_are_refused_with_what_they_come_from(use, sources):
    with pytest.raises(ConfError) as caught:
        find_head(Net(use))
    said = f"Net: the logits come from {sources}, not from one linear layer; give head=NAME"
    assert str(caught.value) == said


def test_a_convolution_that_gives_the_logits_is_refused():
    head = nn.Sequential(nn.Conv2d(6, 5, 1), nn.Flatten())
    net = Net(lambda net, h: net.fc(h[:, :, None, None]), head)
    with pytest.raises(ConfError, match=r"come from fc.0 \(Conv2d\), not from one linear layer"):
        find_head(net)


def test_a_model_without_a_linear_layer_has_no_head():
    with pytest.raises(ConfError, match="Sequential: a model needs a linear head"):
        find_head(nn.Sequential(nn.Conv2d(3, 4, 1)))


def test_the_only_linear_layer_is_the_head():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    assert find_head(model) == ("0", model[0])


def test_what_cannot_be_traced_is_found_by_images_and_then_remembered():
    net = Net(reading_values)
    with pytest.raises(ConfError) as caught:
        find_head(net)
    cannot = "Net: cannot tell which of hidden, fc, aux gives the logits; give head=NAME"
    assert str(caught.value) == cannot
    assert find_head(net, example=IMAGES) == find_head(net) == ("fc", net.fc)


@pytest.mark.parametrize(
    "change",
    [
        lambda net, logits, h: logits.add_(net.aux(h)),
        lambda net, logits, h: logits + net.aux(h),
        lambda net, logits, h: (logits, net.aux(h)),
    ],
)
def test_images_do_not_mislead_where_two_layers_give_the_logits(change):
    net = Net(lambda net, h: change(net, reading_values(net, h), h))
    with pytest.raises(ConfError, match=r"^Net: cannot tell which of hidden, fc, aux"):
        find_head(net, example=IMAGES)


def test_a_name_decides_and_is_remembered():
    net = Net(lambda net, h: net.fc(h) + net.aux(h))
    assert find_head(net, name="aux") == find_head(net) == ("aux", net.aux)


@pytest.mark.parametrize(
    ("name", "what"), [("nope", "no such layer"), ("", "a Net"), ("conv", "a Conv2d")]
)
def test_a_name_of_no_linear_layer_is_refused_with_those_that_are(name, what):
    with pytest.raises(ConfError) as caught:
        find_head(Net(plain), name=name)
    assert str(caught.value) == f"head={name}: {what} in Net; linear layers are hidden, fc, aux"


@pytest.mark.parametrize("use", [plain, reading_values])
def test_the_model_and_all_draws_stay_as_they_are(use):
    def noting(net, h):
        net.seen = h
        net.calls += 1
        return functional.dropout(use(net, h), 0.5)

    net = Net(use).train()
    net.register_buffer("calls", torch.zeros(()))
    net.use, net.seen = noting if use is plain else use, None
    net.hidden.eval()
    before, draws = deepcopy(net.state_dict()), torch.random.get_rng_state()
    parameters = list(net.parameters())
    find_head(net, example=IMAGES)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(own is p for own, p in zip(net.parameters(), parameters, strict=True))
    assert torch.equal(torch.random.get_rng_state(), draws)
    assert (net.training, net.hidden.training, net.aux.training) == (True, False, True)
    assert net.seen is None
    assert all(p.grad is None for p in parameters)


def test_a_model_is_searched_once(monkeypatch):
    net = Net(plain)
    first = find_head(net)
    monkeypatch.setattr(head_module, "_search", lambda *_: pytest.fail("searched again"))
    assert find_head(net) == first
    net.set_submodule("fc", nn.Linear(6, 9))
    assert find_head(net)[1].out_features == 9


def test_what_is_no_longer_there_is_searched_again():
    net = Net(plain)
    find_head(net)
    net.set_submodule("fc", nn.Sequential(nn.Linear(6, 5)))
    assert find_head(net)[0] == "fc.0"


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("torchvision/mobilenet_v3_small", "classifier.3"),
        ("torchvision/vgg11", "classifier.6"),
        ("torchvision/vit_b_32", "heads.head"),
        ("timm/convnext_atto", "head.fc"),
        ("timm/vit_tiny_patch16_224", "head"),
        ("timm/mobilenetv3_small_050", "classifier"),
    ],
)
def test_the_heads_of_libraries_are_found_without_images(name, head):
    with torch.device("meta"):
        model = build_model(name, 3, 4, False, 0, "test")
    assert find_head(model)[0] == head


def test_two_heads_of_a_library_are_refused():
    with torch.device("meta"):
        model = build_model("timm/deit_tiny_distilled_patch16_224", 3, 4, False, 0, "test")
    with pytest.raises(ConfError, match="the logits come from head, head_dist, not from one"):
        find_head(model)


@pytest.mark.parametrize("use", [plain, reading_values])
def test_the_cut_keeps_the_rows_of_the_head_and_zeroes_its_bias(use):
    base = Net(use)
    nn.init.ones_(base.fc.bias)
    cloud, co = slice_cloud(base, IMAGES, 0.5), slice_co(base, IMAGES, 0.5)
    assert (cloud.fc.weight.shape, co.fc.weight.shape) == ((5, 3), (5, 3))
    assert (cloud.fc.bias.sum().item(), co.fc.bias.sum().item()) == (5, 0)
    assert find_head(co)[0] == find_head(cloud)[0] == "fc"
