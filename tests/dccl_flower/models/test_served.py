import torch
from torch import nn

from dccl_flower.models.served import ServedModel


def constant(weight, bias):
    layer = nn.Linear(2, 2)
    layer.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    return layer


def served():
    return ServedModel(
        constant([[1.0, 0.0], [0.0, 1.0]], [0.5, 0.0]),
        constant([[0.0, 2.0], [3.0, 0.0]], [0.0, -1.0]),
    )


def test_the_logits_of_both_parts_are_added():
    # (1, 10) gives (1.5, 10) in the cloud submodel and (20, 2) in the co-submodel.
    assert served()(torch.tensor([[1.0, 10.0]])).tolist() == [[21.5, 12.0]]


def test_both_parts_get_gradients_and_keep_their_names():
    model = served()
    model(torch.ones(3, 2)).sum().backward()
    assert model.cloud.bias.grad.tolist() == model.co.bias.grad.tolist() == [3.0, 3.0]
    assert list(model.state_dict()) == ["cloud.weight", "cloud.bias", "co.weight", "co.bias"]


def test_the_mode_reaches_both_parts():
    model = served().eval()
    assert (model.cloud.training, model.co.training) == (False, False)
