from __future__ import annotations

import pytest
from small_worlds import small_world

from dccl_flower.method import find_method

QUICK = ("model.name=wide_deep", "adaptation.rank=4", "adaptation.bottleneck=2")
PLAIN = ("cloud.learns=data", "adaptation.by=fine_tuning")
SCORES = 5 * 8
# Of patches for hidden layers of 8 and 4, with bottlenecks of 2: down, bias, up, bias.
PATCH_WEIGHTS = (16 + 2 + 16 + 8) + (8 + 2 + 8 + 4)
PATCH_MACS = 2 * 16 + 2 * 8


def loaded(*overrides):
    """Return the server, its turn, and how many samples a device has and is scored by."""
    experiment = small_world("dccl_world", *QUICK, *overrides)
    server = find_method("metapatch").server(experiment, lambda *_: None)
    held = [experiment.device_loader(d) for d in range(experiment.conf.devices.count)]
    own, new = (
        sum(len(getattr(each, side)["label"]) for each in held) / len(held)
        for side in ("own", "scoring")
    )
    return server, server.workload()(1.0), own, new


def total(load, field):
    return sum(getattr(piece, field) for piece in load.pieces)


def num_bytes(load, side):
    return total(load, f"{side}_bytes") + 4 * sum(
        tensor.numel() for piece in load.pieces for tensor in getattr(piece, side).values()
    )


def model_numbers(server):
    return sum(parameter.numel() for parameter in server.model.parameters())


def test_a_vector_and_scores_go_up_for_model_and_bases():
    server, load, _, _ = loaded()
    numbers = model_numbers(server) + PATCH_WEIGHTS * (4 + 1)  # the bases, and where they start
    assert num_bytes(load, "down") == 4 * numbers
    assert num_bytes(load, "up") == 4 * 4 + SCORES
    assert (load.keep_bytes, load.keep_flops) == (0, 0.0)


def test_the_work_of_fitting_a_vector_by_hand():
    server, load, own, new = loaded()
    forward = 8 * server.model.deep.layers[0].in_features + 8 * 4 + 5 + PATCH_MACS
    # Backward, of a model that stays: through the last layer and the one between the patches; of
    # the patches' two products each side, but for what is before the first.
    backward = 5 + 8 * 4 + 2 * PATCH_MACS - 16
    assert total(load, "flops") == pytest.approx(
        2 * own * 2 * (forward + backward) + 2 * new * forward
    )


def test_fine_tuning_costs_more_memory_and_sends_scores_alone():
    server, load, own, new = loaded(*PLAIN)
    forward = 8 * (inputs := server.model.deep.layers[0].in_features) + 8 * 4 + 5
    assert total(load, "flops") == pytest.approx(
        2 * own * 2 * (3 * forward) + 2 * new * forward  # embeddings learn, too
    )
    assert inputs > 8
    assert num_bytes(load, "down") == 4 * model_numbers(server)
    assert num_bytes(load, "up") == SCORES
    ram = [max(piece.memory for piece in each.pieces) for each in (load, loaded()[1])]
    assert ram[0] > ram[1]


def test_without_adaptation_devices_only_score():
    server, load, _, new = loaded("cloud.learns=nothing", "adaptation.by=none")
    forward = 8 * server.model.deep.layers[0].in_features + 8 * 4 + 5
    assert total(load, "flops") == pytest.approx(2 * new * forward)
    assert max(piece.memory for piece in load.pieces) > 4 * model_numbers(server)


def test_stages_on_devices_and_the_clouds_new_model_are_further_exchanges():
    server, usual, _, _ = loaded()
    _, load, _, _ = loaded("method.raw_samples=device", "method.serves=cloud")
    model = 4 * model_numbers(server)
    taught = 4 * sum(tensor.numel() for tensor in server.parts.taught.state.values())
    # Stage 1 takes the model down and up; stage 2 bases and encoder, beside the model.
    further = model + (taught + model) + model
    assert num_bytes(load, "down") == num_bytes(usual, "down") + further
    assert num_bytes(load, "up") == num_bytes(usual, "up") + model + taught + SCORES
    assert total(load, "flops") > total(usual, "flops")


@pytest.mark.parametrize("by", ["metapatch", "patches"])
@pytest.mark.parametrize("model", ["din", "sasrec", "wide_deep"])
def test_any_model_is_served_with_patches_or_without(model, by):
    options = (f"model.name={model}", f"adaptation.by={by}", "cloud.learns=data")
    experiment = small_world("dccl_world", *QUICK, *options)
    served = find_method("metapatch").served(experiment)
    assert list(served) == ["model", "patched"]
    logits = [module(batch) for module, batch in served.values()]
    assert [tuple(each.shape) for each in logits] == [(16,)] * 2
    assert (logits[0] == logits[1]).all()  # patches start as no change


def test_a_proxy_comes_with_the_encoder_and_is_served_so():
    server, load, _, _ = loaded("method.serves=proxy")
    _, usual, _, _ = loaded()
    proxy = 4 * sum(tensor.numel() for tensor in server.parts.proxy.state.values())
    assert num_bytes(load, "down") == num_bytes(usual, "down") + proxy
    assert num_bytes(load, "up") == num_bytes(usual, "up") + SCORES
    assert total(load, "flops") > total(usual, "flops")
    served = find_method("metapatch").served(server.experiment)
    assert [(name, len(module(batch))) for name, (module, batch) in served.items()] == [
        ("model", 16),
        ("proxy", 16),
    ]


def test_a_cloud_that_serves_has_no_patches():
    experiment = small_world("dccl_world", *QUICK, "method.serves=cloud")
    assert list(find_method("metapatch").served(experiment)) == ["model"]
