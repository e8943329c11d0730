import pytest
import torch
from torch import nn

from dccl_flower.models.frozen import (
    Frozen,
    copy_frozen,
    exchanged_state,
    frozen_names,
    load_exchanged,
    train_mode,
)


def stem(seed=0):
    torch.manual_seed(seed)
    norm = nn.BatchNorm1d(3)
    norm.running_mean.normal_()
    return nn.Sequential(nn.Linear(2, 3), norm)


class Net(nn.Module):
    """A stem, a part whose name starts like the stem's, and a head."""

    def __init__(self, seed=0, frozen=True):
        super().__init__()
        self.stem = Frozen(stem(seed)) if frozen else stem(seed)
        self.stemlike = nn.BatchNorm1d(3)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.drop(self.stemlike(self.stem(x))))


def test_a_frozen_part_computes_what_the_part_computes_in_eval_mode():
    part, x = stem().eval(), torch.randn(4, 2)
    expected = part(x)
    assert torch.equal(Frozen(part)(x), expected)


def test_a_frozen_part_never_trains():
    model = Net().train()
    assert model.training
    assert not any(module.training for module in model.stem.module.modules())
    assert not any(p.requires_grad for p in model.stem.parameters())
    assert all(p.requires_grad for p in model.head.parameters())


def test_a_frozen_part_keeps_its_statistics_through_training():
    model = Net().train()
    before = model.stem.module[1].running_mean.clone()
    model(torch.randn(8, 2) + 5)
    assert torch.equal(model.stem.module[1].running_mean, before)


def test_gradients_flow_through_a_frozen_part():
    x = torch.ones(1, 2, requires_grad=True)
    Frozen(nn.Linear(2, 1))(x).sum().backward()
    assert x.grad.abs().sum() > 0


def test_frozen_names_come_in_order():
    model = nn.Sequential(Frozen(nn.ReLU()), nn.Sequential(nn.ReLU(), Frozen(nn.ReLU())))
    assert frozen_names(model) == ["0", "1.1"]
    assert frozen_names(nn.Linear(1, 1)) == []


def test_exchanged_are_the_floats_outside_frozen_parts():
    assert list(exchanged_state(Net())) == [
        "stemlike.weight",
        "stemlike.bias",
        "stemlike.running_mean",
        "stemlike.running_var",
        "head.weight",
        "head.bias",
    ]


def test_without_frozen_parts_all_floats_are_exchanged():
    model = Net(frozen=False)
    counters = {"stem.1.num_batches_tracked", "stemlike.num_batches_tracked"}
    assert set(exchanged_state(model)) == set(model.state_dict()) - counters


def test_exchanged_tensors_are_references():
    model = Net()
    exchanged_state(model)["head.bias"].fill_(7)
    assert model.head.bias.tolist() == [7, 7]


def test_a_loaded_state_is_copied_in_place():
    model = Net()
    bias = model.head.bias
    state = {name: torch.full_like(tensor, 3) for name, tensor in exchanged_state(model).items()}
    stem_before = model.stem.module[0].weight.clone()
    load_exchanged(model, state)
    state["head.bias"].fill_(9)
    assert model.head.bias is bias
    assert bias.tolist() == [3, 3]
    assert model.stemlike.running_var.tolist() == [3, 3, 3]
    assert torch.equal(model.stem.module[0].weight, stem_before)


@pytest.mark.parametrize(
    ("change", "odd"),
    [
        (lambda state: state.pop("head.bias"), "head.bias"),
        (lambda state: state.update(extra=torch.zeros(1)), "extra"),
        (lambda state: state.update({"stem.0.weight": torch.zeros(3, 2)}), "stem.0.weight"),
        (lambda state: state.update({"stemlike.bias": state.pop("stemlike.bias")}), "stemlike"),
    ],
)
def test_a_state_of_other_names_or_another_order_is_refused(change, odd):
    model = Net()
    state = exchanged_state(model)
    change(state)
    with pytest.raises(ValueError, match=f"state does not fit the model: '{odd}.* missing, new or"):
        load_exchanged(model, state)


def test_a_state_of_another_shape_is_refused():
    model = Net()
    state = exchanged_state(model) | {"head.weight": torch.zeros(2, 4)}
    with pytest.raises(ValueError, match=r"'head\.weight' has shape \(2, 4\), expected \(2, 3\)"):
        load_exchanged(model, state)


@pytest.mark.parametrize("source_frozen", [True, False])
def test_frozen_parts_are_copied_with_their_statistics(source_frozen):
    source, target = Net(seed=1, frozen=source_frozen), Net(seed=2)
    head = target.head.weight.clone()
    part = source.stem.module if source_frozen else source.stem
    part[1].num_batches_tracked.fill_(5)
    copy_frozen(source, target)
    copied = target.stem.module.state_dict()
    assert list(copied) == list(part.state_dict())
    assert all(torch.equal(copied[name], tensor) for name, tensor in part.state_dict().items())
    assert torch.equal(target.head.weight, head)
    assert not torch.equal(target.head.weight, source.head.weight)


def test_nothing_is_copied_into_a_model_without_frozen_parts():
    target = Net(seed=2, frozen=False)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    copy_frozen(Net(seed=1), target)
    assert all(torch.equal(before[name], t) for name, t in target.state_dict().items())


def test_a_copied_part_is_the_targets_own():
    source, target = Net(seed=1), Net(seed=2)
    copy_frozen(source, target)
    source.stem.module[0].weight.zero_()
    assert target.stem.module[0].weight.abs().sum() > 0


@pytest.mark.parametrize("freeze", [True, False])
def test_running_statistics_move_unless_they_are_frozen(freeze):
    model = Net(frozen=False).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train_mode(model, freeze_statistics=freeze)
    model(torch.randn(8, 2) + 5)
    after = model.state_dict()
    statistics = [name for name in after if "running" in name or "tracked" in name]
    assert len(statistics) == 6
    assert all(torch.equal(before[name], after[name]) == freeze for name in statistics)


def test_with_frozen_statistics_a_norm_uses_what_it_holds_and_still_learns():
    norm = nn.BatchNorm1d(1)
    norm.running_mean.fill_(1.0)
    norm.running_var.fill_(4.0)
    train_mode(norm, freeze_statistics=True)
    out = norm(torch.tensor([[5.0], [9.0]]))
    assert out.flatten().tolist() == pytest.approx([2.0, 4.0], abs=1e-4)
    out.sum().backward()
    assert norm.weight.grad.item() == pytest.approx(6.0, abs=1e-4)


def test_with_frozen_statistics_all_else_trains():
    model = Net().eval()
    train_mode(model, freeze_statistics=True)
    assert (model.drop.training, model.head.training, model.stemlike.training) == (
        True,
        True,
        False,
    )
    train_mode(model, freeze_statistics=False)
    assert model.stemlike.training
