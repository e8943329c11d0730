from __future__ import annotations

import shutil

import pytest
import torch
from flwr.app import ConfigRecord, MetricRecord
from flwr.serverapp.exception import AggregationError
from local_grid import LocalGrid
from tiny import replied_devices, run_tiny, tiny_app, tiny_cloud, tiny_state, tiny_strategy

from dccl_flower.checkpoint import to_bytes
from dccl_flower.device_store import sha256
from dccl_flower.flower.nodes import FederationError
from dccl_flower.flower.wire import to_state
from dccl_flower.image_config import TwoSidedRoundsConf as RoundsConf
from dccl_flower.learning.controlled import round_recipe
from dccl_flower.learning.fusion import Copy, average
from dccl_flower.learning.head_tuning import apply_head_gradient, head_part
from dccl_flower.strategies.exchange import copies_of


def train_messages(grid):
    return [m for m in grid.sent if m.metadata.message_type == "train"]


def mimic_of(strategy):
    return to_bytes(strategy.cloud.control_states()["mimic"])


def config_of(message):
    return message.content["config"]


def assert_equal_states(left, right):
    assert list(left) == list(right)
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def test_the_cloud_prepares_lazily_and_only_once(tmp_path):
    seen = []
    cloud = tiny_cloud(on_progress=lambda phase, done, *_: seen.append((phase, done)))
    strategy = tiny_strategy(cloud=cloud)
    assert seen == []
    strategy.start(LocalGrid(tiny_app(tmp_path), 5), strategy.initial_arrays(), num_rounds=2)
    assert seen == [("pretrain", 1), ("pretrain", 2), ("distil", 1), ("distil", 2)]


def test_a_train_message_is_one_array_record_and_one_config_record_of_its_own(tmp_path):
    _, grid, _ = run_tiny(tmp_path, num_rounds=1)
    messages = train_messages(grid)
    assert [config_of(m)["device"] for m in messages] == [0, 1, 2, 3, 4]
    for message in messages:
        assert len(message.content.array_records) == 1
        assert len(message.content.config_records) == 1
    assert len({id(config_of(m)) for m in messages}) == 5


def test_the_callers_config_reaches_devices_and_stays_as_it_was(tmp_path):
    strategy, grid = tiny_strategy(), LocalGrid(tiny_app(tmp_path), 5)
    config, strategy.is_private = ConfigRecord({"note": 7}), False
    messages = strategy.configure_train(1, strategy.initial_arrays(), config, grid)
    assert dict(config) == {"note": 7}
    assert all(config_of(m)["note"] == 7 for m in messages)


def test_device_d_runs_on_node_d_mod_n_sorted_by_partition(tmp_path):
    _, grid, _ = run_tiny(tmp_path, num_nodes=2, num_rounds=1)
    nodes = {config_of(m)["device"]: m.metadata.dst_node_id for m in train_messages(grid)}
    assert nodes == {0: 1000, 1: 993, 2: 1000, 3: 993, 4: 1000}


def test_the_same_seed_gives_the_same_arrays_on_any_number_of_nodes(tmp_path):
    finals = []
    for nodes in (1, 2, 5):
        strategy, _, result = run_tiny(tmp_path / str(nodes), nodes, devices_per_round=3)
        finals.append(strategy.co_state(result.arrays))
    assert_equal_states(finals[0], finals[1])
    assert_equal_states(finals[0], finals[2])


def test_another_seed_draws_other_cohorts(tmp_path):
    def cohorts(seed):
        _, grid, _ = run_tiny(tmp_path / str(seed), devices_per_round=2, seed=seed)
        return [config_of(m)["device"] for m in train_messages(grid)]

    assert cohorts(0) != cohorts(1)


def test_the_global_generator_is_left_alone(tmp_path):
    before = torch.get_rng_state()
    run_tiny(tmp_path, num_rounds=1)
    assert torch.equal(before, torch.get_rng_state())


def test_the_round_is_the_published_average_of_cloud_and_devices(tmp_path):
    strategy, grid, result = run_tiny(tmp_path, num_rounds=1)
    recipe = round_recipe(strategy.method.rounds, 1)
    start = tiny_state(train_messages(grid)[0].content["arrays"])
    cloud_copy = strategy.cloud.train_co(start, "ce", recipe, 1)
    devices = copies_of(reply.answer for reply in strategy.replies)
    assert [copy.count for copy in devices] == [12, 15, 18, 21, 24]
    expected = average(Copy(cloud_copy, 0), devices, 0.5)
    assert_equal_states(strategy.co_state(result.arrays), expected)


def test_without_cloud_weight_the_cloud_does_not_train(tmp_path):
    rounds = RoundsConf(count=1, local_steps=2, cloud_weight=0.0)
    strategy, _, result = run_tiny(tmp_path, num_rounds=1, rounds=rounds)
    devices = copies_of(reply.answer for reply in strategy.replies)
    assert_equal_states(strategy.co_state(result.arrays), average(None, devices, 0.0))


def test_the_mimic_goes_to_a_device_once(tmp_path):
    strategy, grid, _ = run_tiny(tmp_path, num_nodes=2, devices_per_round=3)
    blob = mimic_of(strategy)
    distinct = {config_of(m)["device"] for m in train_messages(grid)}
    carriers = [config_of(m) for m in train_messages(grid) if "mimic" in config_of(m)]
    assert [c["mimic"] for c in carriers] == [blob] * len(distinct)
    assert {c["device"] for c in carriers} == distinct
    assert {c["mimic-sha256"] for c in carriers} == {sha256(blob)}
    assert strategy.ledger.totals["mimic_down"] == len(distinct) * len(blob)


def run_with_a_loss(store, lose):
    """Run three rounds, with ``lose`` called once the first is over."""
    strategy, grid = tiny_strategy(), LocalGrid(tiny_app(store), 5, reports_errors=True)
    losses = {1: lose}
    result = strategy.start(
        grid,
        strategy.initial_arrays(),
        num_rounds=3,
        evaluate_fn=lambda server_round, _: losses.get(server_round, lambda: None)(),
    )
    return strategy, grid, tiny_state(result.arrays)


def asked_and_carriers(grid):
    """Return (round, device) of all train messages, and of those that carry a mimic."""
    sent = [(config_of(m)["server-round"], config_of(m)) for m in train_messages(grid)]
    asked = [(n, config["device"]) for n, config in sent]
    return asked, [(n, config["device"]) for n, config in sent if "mimic" in config]


def test_a_device_that_lost_the_mimic_gets_it_again_within_the_round(tmp_path):
    strategy, grid, healed = run_with_a_loss(
        tmp_path / "0", lambda: shutil.rmtree(tmp_path / "0" / "devices" / "3")
    )
    everybody = [[(n, device) for device in range(5)] for n in (1, 2, 3)]
    asked, carriers = asked_and_carriers(grid)
    assert asked == [*everybody[0], *everybody[1], (2, 3), *everybody[2]]
    assert carriers == [*everybody[0], (2, 3)]
    assert strategy.ledger.totals["mimic_down"] == 6 * len(mimic_of(strategy))
    assert strategy.ledger.totals["co_down"] == 16 * strategy.ledger.totals["co_up"] // 15
    assert_equal_states(healed, run_with_a_loss(tmp_path / "1", lambda: None)[2])


def test_a_damaged_mimic_is_sent_again_to_all_that_share_it_within_the_round(tmp_path):
    def damage():
        next((tmp_path / "0" / "blobs").iterdir()).write_bytes(b"damaged")

    strategy, grid, healed = run_with_a_loss(tmp_path / "0", damage)
    asked, carriers = asked_and_carriers(grid)
    # The first to be asked again mends the file that all share, and the others get it all the same.
    assert carriers == [(n, device) for n in (1, 2) for device in range(5)]
    assert len(asked) == 20
    assert strategy.ledger.totals["mimic_down"] == 10 * len(mimic_of(strategy))
    assert_equal_states(healed, run_with_a_loss(tmp_path / "1", lambda: None)[2])


def test_who_answered_last_time_is_not_asked_what_it_holds(tmp_path):
    _, grid, _ = run_with_a_loss(tmp_path, lambda: None)
    queries = [m for m in grid.sent if m.metadata.message_type == "query.holds"]
    assert len(queries) == 5
    assert grid.sent.index(queries[-1]) < grid.sent.index(train_messages(grid)[0])


def test_a_device_refuses_a_mimic_that_is_not_the_announced_one(tmp_path):
    strategy, grid = tiny_strategy(num_devices=1), LocalGrid(tiny_app(tmp_path), 1)
    arrays, strategy.is_private = strategy.initial_arrays(), False
    (message,) = strategy.configure_train(1, arrays, ConfigRecord(), grid)
    config_of(message)["mimic"] = b"something else"
    with pytest.raises(ValueError, match="SHA-256"):
        grid.send_and_receive([message])


def test_the_ledger_counts_what_the_messages_hold(tmp_path):
    strategy, grid, _ = run_tiny(tmp_path, num_rounds=2)
    messages = train_messages(grid)
    arrays = sum(m.content["arrays"].count_bytes() for m in messages)
    assert strategy.ledger.totals["co_down"] == arrays
    assert strategy.ledger.totals["co_up"] == arrays
    configs = sum(m.content["config"].count_bytes() for m in grid.sent if "config" in m.content)
    totals = strategy.ledger.totals
    assert totals["mimic_down"] + totals["other_down"] == configs


def test_exemplars_go_down_once_and_change_the_training(tmp_path):
    without = run_tiny(tmp_path / "0", num_rounds=2)[2]
    strategy, grid, with_some = run_tiny(tmp_path / "1", num_rounds=2, exemplars=6)
    carriers = [config_of(m) for m in train_messages(grid) if "exemplars" in config_of(m)]
    assert len(carriers) == 5
    assert strategy.ledger.totals["exemplars_down"] == 5 * len(carriers[0]["exemplars"])
    left, right = tiny_state(without.arrays), tiny_state(with_some.arrays)
    assert not torch.equal(left["0.weight"], right["0.weight"])


def test_head_tuning_takes_the_gradient_step_of_everybodys_samples(tmp_path):
    rounds = RoundsConf(count=1, local_steps=4, lr=0.05, head_tuning_lr=0.3)
    _, _, untuned = run_tiny(tmp_path / "0", num_rounds=1, rounds=rounds)
    strategy, grid, tuned = run_tiny(tmp_path / "1", num_rounds=1, rounds=rounds, head_tuning=True)
    start = tiny_state(untuned.arrays)
    head = head_part(strategy.cloud.co_submodel, start)
    assert list(head) == ["3.weight", "3.bias"]
    app, parts = tiny_app(tmp_path / "2"), []
    replay = LocalGrid(app, 5)
    heads = [m for m in grid.sent if m.metadata.message_type == "train.again"]
    assert [config_of(m)["device"] for m in heads] == [0, 1, 2, 3, 4]
    for message in heads:
        config_of(message)["mimic"] = mimic_of(strategy)
        (reply,) = replay.send_and_receive([message])
        (gradient,) = reply.content["arrays"].values()
        assert gradient.numpy().shape == (3 * 6 + 3,)
        count = reply.content["metrics"]["num-examples"]
        parts.append(Copy(to_state(reply.content["arrays"], head), count))
    own = Copy(strategy.cloud.head_gradient(start, "ce", rounds.local_steps, 1, 0), 0)
    expected = apply_head_gradient(start, average(own, parts, rounds.cloud_weight), 0.3)
    assert_equal_states(tiny_state(tuned.arrays), expected)


def test_frozen_statistics_stop_moving_after_their_share_of_the_rounds(tmp_path):
    rounds = RoundsConf(count=4, local_steps=2, freeze_statistics_after=0.5)
    states = {}

    def keep(server_round, arrays):
        states[server_round] = tiny_state(arrays)["1.running_mean"]

    strategy = tiny_strategy(rounds=rounds, statistics="frozen")
    grid = LocalGrid(tiny_app(tmp_path), 5)
    strategy.start(grid, strategy.initial_arrays(), num_rounds=4, evaluate_fn=keep)
    assert not torch.equal(states[1], states[2])
    torch.testing.assert_close(states[2], states[4])


def test_a_failing_device_fails_the_round_with_its_cause(tmp_path):
    strategy, grid = tiny_strategy(), LocalGrid(tiny_app(tmp_path), 5)
    grid.fails = {2}
    with pytest.raises(AggregationError, match=r"4 of 5 devices answered.*out of memory"):
        strategy.start(grid, strategy.initial_arrays(), num_rounds=1)


def test_min_replies_lets_a_round_go_on_without_a_device(tmp_path):
    rounds = RoundsConf(count=1, local_steps=2, min_replies=0.8)
    strategy, grid = tiny_strategy(rounds=rounds), LocalGrid(tiny_app(tmp_path), 5)
    grid.fails = {2}
    strategy.start(grid, strategy.initial_arrays(), num_rounds=1)
    assert replied_devices(strategy) == [0, 1, 3, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices_per_round": 6}, "devices_per_round=6: must lie in 1..5"),
        ({"devices_per_round": 0}, "devices_per_round=0"),
        ({"fraction_train": 0.0}, "fraction_train=0.0: must be above 0 and at most 1"),
        (
            {"fraction_train": 0.5, "devices_per_round": 2},
            "fraction_train=0.5: not with devices_per_round=2",
        ),
        ({"loss": "mse"}, "loss='mse': expected one of ce, prior_corrected"),
        ({"statistics": "none"}, "statistics='none': expected one of batch, frozen, fused"),
    ],
)
def test_impossible_options_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_strategy(**options)


def test_too_many_nodes_are_refused_before_the_cloud_trains(tmp_path):
    seen = []
    strategy = tiny_strategy(cloud=tiny_cloud(on_progress=lambda *event: seen.append(event)))
    with pytest.raises(FederationError):
        strategy.start(LocalGrid(tiny_app(tmp_path), 6), strategy.initial_arrays(), num_rounds=1)
    assert seen == []


def test_more_nodes_than_devices_are_refused(tmp_path):
    with pytest.raises(FederationError, match="6 nodes for 5 devices"):
        run_tiny(tmp_path, num_nodes=6)


def test_a_share_of_the_devices_trains_and_the_caller_joins_what_they_tell(tmp_path):
    joined = []

    def join(contents, weighted_by_key):
        joined.append((len(contents), weighted_by_key))
        return MetricRecord({"answers": len(contents)})

    given = {"fraction_train": 0.4, "train_metrics_aggr_fn": join}
    _, _, result = run_tiny(tmp_path, **given)  # of five devices
    assert joined == [(2, "num-examples")] * 3
    assert dict(result.train_metrics_clientapp[3]) == {"answers": 2}


def test_devices_can_score_on_their_own_samples(tmp_path):
    _, grid, result = run_tiny(tmp_path, num_rounds=1, fraction_evaluate=0.4)
    metrics = result.evaluate_metrics_clientapp[1]
    asked = [m for m in grid.sent if m.metadata.message_type == "evaluate"]
    assert len(asked) == 2
    assert "device" not in metrics
    assert 0 <= metrics["accuracy"] <= 1


class OneWrongScore(LocalGrid):
    """Changes the first reply to an evaluate message."""

    def __init__(self, app, num_nodes, change):
        super().__init__(app, num_nodes)
        self.change = change

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        replies = super().send_and_receive(messages, timeout=timeout)
        if messages and messages[0].metadata.message_type == "evaluate":
            self.change(replies[0].content)
        return replies


def told(content):
    (metrics,) = content.metric_records.values()
    return metrics


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda content: content.clear(), "nameless"),
        (lambda content: told(content).pop("device"), "nameless"),
        (lambda content: told(content).update({"device": 4}), "stranger"),
        (lambda content: told(content).update({"server-round": 7}), "stale"),
        (lambda content: told(content).update({"num-examples": 0}), "samples"),
        (lambda content: told(content).update({"accuracy": float("nan")}), "not_finite"),
        (lambda content: told(content).update({"loss": [1.0]}), "unfit"),
    ],
)
def test_a_wrong_score_is_judged_as_the_policy_says(change, kind, tmp_path):
    def run(min_replies):
        rounds = RoundsConf(count=1, local_steps=4, lr=0.05, min_replies=min_replies)
        strategy = tiny_strategy(fraction_evaluate=0.4, rounds=rounds)
        grid = OneWrongScore(tiny_app(tmp_path), 5, change)
        result = strategy.start(grid, strategy.initial_arrays(), num_rounds=1)
        return result.evaluate_metrics_clientapp[1], strategy.facts().faults

    metrics, faults = run(0.5)
    assert 0 <= metrics["accuracy"] <= 1
    assert "server-round" not in metrics
    assert faults == {kind: 1}
    with pytest.raises(AggregationError, match=f"1 of 2 devices answered.*{kind}: "):
        run(1.0)
