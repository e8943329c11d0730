import pytest
import torch
from torch import nn

from dccl_flower.models.control import CONTROLS, NoControl, choose_control
from dccl_flower.models.frozen import Frozen, copy_frozen, exchanged_state, frozen_names


class Body(nn.Module):
    """A convolution and a norm with a name of three parts, and a layer of its own."""

    def __init__(self, frozen):
        super().__init__()
        stem = nn.Module()
        conv, norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)
        norm.running_mean.normal_()
        stem.conv, stem.norm = (Frozen(conv), Frozen(norm)) if frozen else (conv, norm)
        self.stem, self.own = stem, nn.Conv2d(2, 3, 1)

    def forward(self, x):
        return self.own(self.stem.norm(self.stem.conv(x)))


class Net(nn.Module):
    def __init__(self, seed, frozen=True, classes=4):
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.head = Body(frozen), nn.Linear(3, classes)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("count", "classes"), [(1, 4), (5, 7)])
def test_without_control_all_logits_are_zero(frozen, count, classes):
    net = Net(0, frozen, classes)
    images = torch.randn(count, 1, 4, 4)
    logits = NoControl(net)(images)
    assert logits.shape == net(images).shape == (count, classes)
    assert not logits.any()


def test_zeros_lie_on_the_device_of_the_images():
    assert NoControl(Net(0))(torch.zeros(2, 1, 4, 4, device="meta")).device.type == "meta"


def test_the_frozen_parts_are_held_under_the_same_names_and_nothing_else():
    co = Net(0)
    control = NoControl(co)
    assert frozen_names(control) == frozen_names(co) == ["body.stem.conv", "body.stem.norm"]
    held, own = control.state_dict(), co.state_dict()
    assert list(held) == [name for name in own if name.startswith("body.stem.")]
    assert all(torch.equal(tensor, own[name]) for name, tensor in held.items())
    assert exchanged_state(control) == {}


def test_where_nothing_is_frozen_nothing_is_held():
    assert NoControl(Net(0, frozen=False)).state_dict() == {}


def test_the_frozen_parts_of_the_cloud_reach_the_co_submodel_of_a_device():
    on_cloud, on_device = Net(1), Net(2)
    control = NoControl(on_device)
    control.load_state_dict(NoControl(on_cloud).state_dict())
    head = on_device.head.weight.clone()
    copy_frozen(control, on_device)
    cloud, device = on_cloud.state_dict(), on_device.state_dict()
    assert all(torch.equal(device[n], cloud[n]) for n in cloud if n.startswith("body.stem."))
    assert torch.equal(on_device.head.weight, head)
    assert not torch.equal(device["body.own.weight"], cloud["body.own.weight"])


def test_the_cloud_submodel_s_parts_can_be_copied_in():
    # On the cloud the stem is an ordinary part of the submodel.
    cloud, control = Net(1, frozen=False), NoControl(Net(2))
    copy_frozen(cloud, control)
    assert torch.equal(control.body.stem.conv.module.weight, cloud.body.stem.conv.weight)
    assert torch.equal(
        control.body.stem.norm.module.running_mean, cloud.body.stem.norm.running_mean
    )


def test_what_is_held_does_not_share_memory_with_the_co_submodel():
    co = Net(0)
    control = NoControl(co)
    co.body.stem.conv.module.weight.zero_()
    assert control.body.stem.conv.module.weight.abs().sum() > 0


def test_nothing_in_it_trains():
    control = NoControl(Net(0)).train()
    assert not any(p.requires_grad for p in control.parameters())
    assert not control.body.stem.norm.module.training


@pytest.mark.parametrize(("name", "chosen"), [("mimic", 0), ("cloud_submodel", 1)])
def test_a_control_is_chosen_by_name(name, chosen):
    models = Net(0), Net(1), Net(2)
    assert choose_control(name, *models) is models[chosen]


def test_without_control_the_co_submodel_s_own_parts_are_held():
    control = choose_control("none", Net(0), Net(1), Net(2))
    assert isinstance(control, NoControl)
    held, own = control.body.stem.conv.state_dict(), Net(2).body.stem.conv.state_dict()
    assert torch.equal(held["module.weight"], own["module.weight"])


def test_another_control_is_refused_with_those_that_exist():
    with pytest.raises(ValueError, match=r"^control='x': expected one of mimic, cloud_submodel, n"):
        choose_control("x", Net(0), Net(1), Net(2))
    assert tuple(CONTROLS) == ("mimic", "cloud_submodel", "none")
