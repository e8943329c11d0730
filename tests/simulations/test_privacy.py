"""Privacy that a configuration asks for is refused before anything trains, or told at the end."""

from __future__ import annotations

import pytest
from refusals import refusal
from small_experiments import small_experiment
from small_worlds import small_world

from dccl_flower.config import ConfError
from dccl_flower.simulations.app.experiment_run import privacy_spent
from dccl_flower.simulations.app.in_process import run_here
from dccl_flower.simulations.experiment import check_devices
from dccl_flower.simulations.run.display import Display

GROUP = ("normalisation=group", "privacy.dp=client_fixed")
REFUSED = [
    (("fusion=class_wise_head",), "class-counts"),
    (("head_tuning=federated",), "co, head-samples, head_gradient"),
    (("wire.codec=int8",), "codec=int8"),
    (("wire.codec=fp16",), "codec=fp16"),
    (("runtime.devices_per_node=2",), "devices_per_node=2"),
]

pytest.importorskip("dp_accounting")


def refused(experiment):
    with pytest.raises(ConfError) as caught:
        check_devices(experiment)
    return str(caught.value)


@pytest.mark.parametrize(("changes", "what"), REFUSED)
@pytest.mark.parametrize("dp", ["client_fixed", "server_adaptive", "local"])
def test_what_is_not_covered_is_named(changes, what, dp):
    cheap = "privacy.noise_multiplier=0.1"
    experiment = small_experiment(*GROUP, *changes, f"privacy.dp={dp}", cheap)
    assert refused(experiment) == f"privacy.dp={dp}: does not cover {what}"


def test_methods_without_updates_or_with_more_than_one_are_refused():
    world = small_world("dccl_world", "privacy.dp=local", "method.raw_samples=device")
    told = "privacy.dp=local: does not cover model, patches, scores, vector"
    assert refused(world) == told
    fedavg = small_experiment("method.name=fedavg", "privacy.dp=local")
    assert check_devices(fedavg)  # its batch norms show later


def test_batch_norms_and_server_momentum_are_refused():
    assert refusal("privacy.dp=local").startswith("normalisation=batch: not with privacy.dp=local")
    told = refusal(*GROUP, "rounds.server_momentum=0.5")
    assert told.startswith("rounds.server_momentum=0.5: not with privacy.dp=client_fixed")


def test_adaptive_clipping_needs_devices_enough_for_its_noise():
    changes = (*GROUP, "privacy.dp=client_adaptive", "privacy.noise_multiplier=0.3")
    told = "must be below 0.3, a tenth of the devices of a round, with privacy.dp=client_adaptive"
    assert refused(small_experiment(*changes)) == f"privacy.noise_multiplier=0.3: {told}"


def test_a_run_without_flower_is_refused(tmp_path):
    with pytest.raises(ConfError, match=r"^privacy.dp=client_fixed: it is Flower that does it"):
        run_here(small_experiment(*GROUP), tmp_path / "run", Display())


def test_what_was_spent_grows_with_rounds_and_shrinks_with_noise():
    def spent(*changes, rounds=2):
        answered = [[0, 1, 2]] * rounds
        return privacy_spent(small_experiment(*GROUP, *changes), answered)["epsilon"]

    base = spent("privacy.noise_multiplier=1")
    assert (
        spent("privacy.noise_multiplier=1", rounds=4) > base > spent("privacy.noise_multiplier=2")
    )
    # Half of the state is the cloud's own.
    without = spent("privacy.noise_multiplier=2", "rounds.cloud_weight=0")
    assert without == pytest.approx(base)
    assert spent("privacy.noise_multiplier=0") is None
    once = privacy_spent(small_experiment(*GROUP, "privacy.dp=local"), [[0, 1], [1], [2]])
    assert len(once["noise_of_rounds"]) == 2
