"""Every option's numbers stay what they were: ``recorded.json`` holds them, to be read by eye.

Weights were recorded before rounds became generators. Hashes would differ between processors.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from clouds import stem_cloud, with_stem
from flwr.clientapp.mod import LocalDpMod, adaptiveclipping_mod, fixedclipping_mod
from flwr.serverapp import strategy as flower
from local_grid import LocalGrid
from tiny import device_loader, run_tiny, tiny_app, tiny_cloud, tiny_strategy

from dccl_flower import DcCclClient, numpy_client_app
from dccl_flower.fleet.profiles import Fleet, Tier
from dccl_flower.fleet.roster import Rules
from dccl_flower.image_config import TwoSidedRoundsConf
from dccl_flower.learning.fusion import Fusion

RECORDED = json.loads(Path(__file__).with_name("recorded.json").read_text())
POOLED, CLASS_WISE = Fusion(pooled_statistics=True), Fusion(class_wise_head=True)
BOTH = Fusion(class_wise_head=True, pooled_statistics=True)


def rounds(**options):
    return TwoSidedRoundsConf(**{"count": 3, "local_steps": 4, "lr": 0.05, **options})


def late(**options):
    return rounds(freeze_statistics_after=0.0, **options)


def fleet(**tiers):
    facts = {"flops": 1e6, "memory_mb": 1, "down_mbps": 1, "up_mbps": 1}
    facts |= {"availability": 1.0, "drop_out": 0.0}
    return Fleet(tuple(Tier(name, 1.0, **{**facts, **own}) for name, own in tiers.items()), 5, 0)


WIDTHS = {"fleet": fleet(wide={}, narrow={"co_share": 0.5})}
MIXED = {"statistics": "mixed", "fusion": POOLED, "rounds": late()}
SHARED = {"devices_per_node": 2, "num_nodes": 2}
ALL_AT_ONCE = {"fusion": BOTH, "statistics": "mixed", "rounds": late(keep_momentum=True)}
OPTIONS = {
    "published": {},
    "scaffold": {"rounds": rounds(scaffold=True)},
    "keep momentum": {"rounds": rounds(keep_momentum=True)},
    "server momentum": {"rounds": rounds(server_momentum=0.9, momentum=0.0)},
    "both momenta": {"rounds": rounds(server_momentum=0.5, keep_momentum=True)},
    "scaffold+momenta": {"rounds": rounds(scaffold=True, server_momentum=0.5, keep_momentum=True)},
    "frozen": {"statistics": "frozen", "rounds": late(max_grad_norm=1.0)},
    "fused": {
        "statistics": "fused",
        "fusion": POOLED,
        "rounds": late(statistics_step=0.2, max_grad_norm=1.0),
    },
    "mixed": MIXED,
    "mixed late": {"statistics": "mixed", "fusion": POOLED},
    "group": {"norm": "group"},
    "head tuning": {"head_tuning": True},
    "head tuning 2": {
        "head_tuning": True,
        "rounds": rounds(head_tuning_steps=2, head_tuning_lr=0.3),
    },
    "prior": {"loss": "prior_corrected"},
    "exemplars": {"exemplars": 6},
    "exemplars herded": {"exemplars": 6, "exemplar_choice": "herded", "loss": "prior_corrected"},
    "class-wise": {"fusion": CLASS_WISE},
    "class-wise pooled mixed": {**MIXED, "fusion": BOTH},
    "cosine": {"rounds": rounds(lr_schedule="cosine")},
    "devices alone": {"rounds": rounds(cloud_weight=0.0)},
    "cloud 0.8": {"rounds": rounds(cloud_weight=0.8)},
    "fp16": {"codec": "fp16"},
    "int8": {"codec": "int8"},
    "int8+momentum+exemplars": {
        "codec": "int8",
        "rounds": rounds(keep_momentum=True),
        "exemplars": 6,
    },
    "int8 head tuning": {"codec": "int8", "head_tuning": True},
    "mixed int8": {**MIXED, "codec": "int8"},
    "cohort 2": {"devices_per_round": 2},
    "cohort int8 momentum": {
        "devices_per_round": 2,
        "codec": "int8",
        "rounds": rounds(keep_momentum=True),
    },
    "tiers": {
        "fleet": fleet(slow={"flops": 1e3}, fast={}),
        "rules": Rules(deadline=5.0),
        "rounds": rounds(min_replies=0.25),
    },
    "tiers gone": {"fleet": fleet(phone={"drop_out": 0.4}), "rounds": rounds(min_replies=0.2)},
    "over-sampled": {
        "fleet": fleet(a={"drop_out": 0.3}, b={"flops": 2e5}),
        "devices_per_round": 2,
        "rules": Rules(over_sampling=1.5),
        "rounds": rounds(min_replies=0.1),
    },
    "two widths": WIDTHS,
    "two widths int8": {**WIDTHS, "codec": "int8"},
    "two widths mixed": {**WIDTHS, **MIXED},
    "two widths shared": {**WIDTHS, "devices_per_node": 3, "num_nodes": 2},
    "shared": SHARED,
    "shared all": {**SHARED, **ALL_AT_ONCE, "exemplars": 6},
    "shared int8": {"devices_per_node": 3, "num_nodes": 2, "codec": "int8"},
    "shared fp16": {"devices_per_node": 3, "num_nodes": 1, "codec": "fp16"},
    "shared scaffold": {**SHARED, "rounds": rounds(scaffold=True, server_momentum=0.5)},
    "shared class-wise": {**SHARED, "fusion": CLASS_WISE},
    "shared head tuning": {**SHARED, "head_tuning": True},
    "control cloud": {"control": "cloud_submodel"},
    "control none": {"control": "none"},
    "evaluate": {"fraction_evaluate": 0.4},
    "seed 3": {"seed": 3},
    "two nodes": {"num_nodes": 2},
}
CLIPPING = {"clipping_norm": 1.0, "num_sampled_clients": 5}
PRIVATE = {
    "dp client fixed": (
        lambda s: flower.DifferentialPrivacyClientSideFixedClipping(s, 0.01, **CLIPPING),
        [fixedclipping_mod],
    ),
    "dp client adaptive": (
        lambda s: flower.DifferentialPrivacyClientSideAdaptiveClipping(s, 0.1, 5),
        [adaptiveclipping_mod],
    ),
    "dp server fixed": (
        lambda s: flower.DifferentialPrivacyServerSideFixedClipping(s, 0.01, **CLIPPING),
        [],
    ),
    "dp server adaptive": (
        lambda s: flower.DifferentialPrivacyServerSideAdaptiveClipping(s, 0.1, 5),
        [],
    ),
    "dp local": (lambda s: s, [LocalDpMod(1.0, 1.0, 10.0, 1e-5)]),
}


def facts(strategy, grid, result):
    """Return what a run is known by; the envelope's bytes are Flower's own."""
    state = strategy.co_state(result.arrays)
    ledger = {n: size for n, size in strategy.ledger.totals.items() if size}
    return {
        "norms": {name: tensor.double().norm().item() for name, tensor in state.items()},
        "bytes": {n: size for n, size in sorted(ledger.items()) if not n.startswith("other")},
        "messages": dict(sorted(Counter(m.metadata.message_type for m in grid.sent).items())),
    }


def assert_recorded(name, run):
    found, recorded = facts(*run), RECORDED[name]
    assert found["norms"] == pytest.approx(recorded["norms"], rel=1e-5)
    assert found["bytes"] == recorded["bytes"]
    assert found["messages"] == recorded["messages"]


def content_bytes(messages):
    return sum(record.count_bytes() for m in messages for record in m.content.values())


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_changes_what_it_always_did(name, tmp_path):
    strategy, grid, result = run_tiny(tmp_path, **OPTIONS[name])
    assert_recorded(name, (strategy, grid, result))
    # The ledger counts devices that share a message, or are gone, as if each had its own.
    if not {"devices_per_node", "rules"}.intersection(OPTIONS[name]) and name != "tiers gone":
        sums = Counter()
        for kind, size in strategy.ledger.totals.items():
            sums[kind.rpartition("_")[2]] += size
        # Counted, an evaluation's metrics lose the device's id: a name and a number.
        received = content_bytes(grid.received)
        assert sums == {"down": content_bytes(grid.sent), "up": received}


@pytest.mark.parametrize("name", PRIVATE)
def test_differential_privacy_clips_and_adds_what_it_always_did(name, tmp_path):
    np.random.seed(0)  # Flower draws its noise from numpy's global generator
    wrap, mods = PRIVATE[name]
    strategy = tiny_strategy(norm="group")
    grid = LocalGrid(tiny_app(tmp_path, "group", mods), 5)
    result = wrap(strategy).start(grid, strategy.initial_arrays(), num_rounds=3)
    assert_recorded(name, (strategy, grid, result))


def test_a_start_from_the_mimic_is_what_it_always_was(tmp_path):
    assert_recorded("mimic start", run_tiny(tmp_path, cloud=tiny_cloud(co_start="mimic")))


def test_a_shared_stem_is_what_it_always_was(tmp_path):
    def client_fn(context):
        return DcCclClient(with_stem(8, True), with_stem(9, True), device_loader, tmp_path)

    strategy, grid = tiny_strategy(cloud=stem_cloud()), LocalGrid(numpy_client_app(client_fn), 5)
    result = strategy.start(grid, strategy.initial_arrays(), num_rounds=3)
    assert_recorded("stem", (strategy, grid, result))


def test_nothing_recorded_is_left_out():
    assert set(RECORDED) == {*OPTIONS, *PRIVATE, "mimic start", "stem"}
