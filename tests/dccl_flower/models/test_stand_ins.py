"""Attention is cut by whole heads, grouped convolutions by whole groups."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from halves import check_halves
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2
from torchvision.models.swin_transformer import SwinTransformer as TorchvisionSwin
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT

from dccl_flower.config import ConfError
from dccl_flower.models.split import narrow, slice_cloud, slice_co
from dccl_flower.models.zoo import build_model

CLASSES = 5
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def vit(heads=4, **options):
    how = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, **options}
    return VisionTransformer(num_heads=heads, num_classes=CLASSES, **how)


def swin():
    how = {"img_size": 32, "patch_size": 2, "embed_dim": 16, "depths": (2, 2), "window_size": 4}
    return SwinTransformer(num_heads=(2, 4), num_classes=CLASSES, **how)


def torchvision_vit():
    return TorchvisionViT(32, 8, 2, 4, 32, 64, num_classes=CLASSES)


def torchvision_swin():
    how = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}
    window = ([2, 2], 16, [2, 2], [2, 4], [4, 4])
    return TorchvisionSwin(*window, num_classes=CLASSES, **how)


class Grouped(nn.Module):
    """A convolution in four groups of four channels between two others."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x):
        x = functional.relu(self.grouped(functional.relu(self.first(x))))
        return self.head(x.mean(dim=(2, 3)))


MODELS = {
    "ViT": vit,
    "ViT with one head": lambda: vit(heads=1),
    "ViT with layer scale and norms of queries": lambda: vit(init_values=0.1, qk_norm=True),
    "ViT without class token": lambda: vit(class_token=False, global_pool="avg"),
    "Swin": swin,
    "torchvision's ViT": torchvision_vit,
    "torchvision's Swin V2": torchvision_swin,
    "grouped": Grouped,
    "RegNet": lambda: build_model("timm/regnety_002", 3, CLASSES, False, 0, "t"),
    "ConvNeXt": lambda: build_model("timm/convnext_atto", 3, CLASSES, False, 0, "t"),
}
every_model = pytest.mark.parametrize("name", MODELS)


def scrambled(name):
    torch.manual_seed(0)
    model = MODELS[name]()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.normal_(std=0.1)
    return model


@every_model
@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_the_halves_share_out_the_weights_and_train(name, ratio):
    base = scrambled(name)
    halves = [cut(base, IMAGES, ratio) for cut in (slice_cloud, slice_co)]
    check_halves(base, *halves)
    for half in halves:
        before = [parameter.clone() for parameter in half.parameters()]
        optimizer = torch.optim.SGD(half.parameters(), lr=0.1)
        functional.cross_entropy(half(IMAGES), torch.tensor([0, 1])).backward()
        optimizer.step()
        assert all(p.grad is not None for p in half.parameters())
        moved = [not torch.equal(a, b) for a, b in zip(before, half.parameters(), strict=True)]
        assert sum(moved) > len(moved) / 2


@every_model
def test_it_is_cut_without_values_as_with_them(name):
    with torch.device("meta"):
        bare = MODELS[name]()
        without = slice_co(bare, torch.zeros(2, 3, 32, 32), 0.25).state_dict()
    with_values = slice_co(MODELS[name](), IMAGES, 0.25).state_dict()
    shapes = [{k: t.shape for k, t in state.items()} for state in (without, with_values)]
    assert shapes[0] == shapes[1]


def test_a_quarter_of_four_heads_is_one():
    base = scrambled("ViT")
    cloud, co = (cut(base, IMAGES, 0.25).blocks[0].attn for cut in (slice_cloud, slice_co))
    assert (cloud.num_heads, co.num_heads, cloud.head_dim, co.head_dim) == (3, 1, 8, 8)
    whole = base.blocks[0].attn
    for part in range(3):  # queries, keys and values
        queries = whole.qkv.weight[32 * part : 32 * (part + 1)]
        assert torch.equal(cloud.qkv.weight[24 * part : 24 * (part + 1)], queries[:24, :24])
        assert torch.equal(co.qkv.weight[8 * part : 8 * (part + 1)], queries[24:, 24:])
    assert torch.equal(co.proj.weight, whole.proj.weight[24:, 24:])


def test_heads_of_the_halves_attend_as_the_whole_does_where_nothing_joins_them():
    base = scrambled("ViT").blocks[0].attn
    tokens = torch.randn(1, 5, 32)
    model = scrambled("ViT")
    model.blocks[0].attn = base
    cloud = slice_cloud(model, IMAGES, 0.25).blocks[0].attn.eval()
    with torch.no_grad():
        # What the cloud's half does not read is zero, and so is what it does not give.
        lone = deepcopy(base).eval()
        for weight in (lone.qkv.weight, lone.proj.weight):
            weight[:, 24:] = 0
        given = lone(tokens)[..., :24]
        assert torch.allclose(cloud(tokens[..., :24]), given, atol=1e-6)


def test_a_merger_of_patches_keeps_each_positions_channels():
    base = scrambled("Swin")
    co = slice_co(base, IMAGES, 0.5)
    whole, part = base.layers[1].downsample, co.layers[1].downsample
    columns = [position * 16 + channel for position in range(4) for channel in range(8, 16)]
    assert torch.equal(part.norm.weight, whole.norm.weight[columns])
    assert torch.equal(part.reduction.weight, whole.reduction.weight[16:, columns])


def test_a_quarter_of_four_groups_is_one():
    base = scrambled("grouped")
    co = slice_co(base, IMAGES, 0.25)
    assert (co.grouped.groups, co.grouped.in_channels, co.grouped.out_channels) == (1, 4, 4)
    assert torch.equal(co.grouped.weight, base.grouped.weight[12:])
    assert torch.equal(co.first.weight, base.first.weight[12:])


def test_two_image_sizes_go_through_both_halves():
    base = build_model("timm/resnext26ts", 3, CLASSES, False, 0, "t")
    for cut in (slice_cloud, slice_co):
        half = cut(base, IMAGES, 0.125)
        for size in (32, 48):
            assert half(torch.zeros(2, 3, size, size)).shape == (2, CLASSES)


def test_a_narrow_vit_holds_the_leading_heads():
    co = slice_co(scrambled("ViT"), IMAGES, 0.5)
    with pytest.raises(ConfError, match="are not leading ones"):
        narrow(co, IMAGES, 0.5)
