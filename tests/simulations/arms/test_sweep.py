from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dccl_flower.config import ConfError
from dccl_flower.config_loading import load_conf
from dccl_flower.simulations.arms.arms import Arm, ArmTable, load_arms, plan_arms
from dccl_flower.simulations.arms.sweep import (
    Sweep,
    only_itself,
    parse_swept,
    plan_sweep,
    split_values,
)

TABLE = load_arms("dc_ccl")
BUILT = ArmTable({"base": Arm("B"), "top": Arm("T", ["method.name=other"], builds_on="base")})
WORDS = st.text(st.characters(exclude_characters=",[](){}"), min_size=1).map(str.strip)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.1", ["0.1"]),
        ("0.1, 0.2", ["0.1", "0.2"]),
        (",5", ["", "5"]),
        ("[0,1],[2]", ["[0,1]", "[2]"]),
        ("{lr: 0.1, count: [1,2]},{lr: 1}", ["{lr: 0.1, count: [1,2]}", "{lr: 1}"]),
        ("f(a,b),c", ["f(a,b)", "c"]),
        ("a],b", ["a]", "b"]),
        ("[a,b", ["[a,b"]),
    ],
)
def test_values_part_at_commas_outside_brackets(text, values):
    assert split_values(text) == values


@given(st.lists(st.one_of(WORDS, st.lists(WORDS).map(lambda each: f"[{','.join(each)}]"))))
def test_values_come_back_as_they_were_joined(values):
    assert split_values(",".join(values)) == (values or [""])


def test_a_key_and_each_of_its_values_once():
    assert parse_swept("rounds.lr=0.1,0.2,0.1", ["seed=3"]) == ("rounds.lr", ["0.1", "0.2"])
    assert parse_swept("devices.per_round=,5", []) == ("devices.per_round", ["", "5"])
    assert parse_swept("data.name=a=b,c", []) == ("data.name", ["a=b", "c"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rounds.lr", r"^sweep 'rounds\.lr': expected key=value,value,\.\.\.$"),
        ("=1,2", r"^sweep '=1,2': expected key=value"),
        ("rounds.lr=", r"^sweep 'rounds\.lr=': expected values, separated by commas$"),
        ("seed=0,1", r"^sweep seed: has an option of its own, --seeds$"),
        ("arms.rows=mixed,dc_ccl", r"^sweep arms\.rows: sweep what an arm changes"),
        ("loss=ce,prior_corrected", r"^sweep loss: is among the overrides too; expected one"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(text, message):
    with pytest.raises(ConfError, match=message):
        parse_swept(text, ["loss=ce"])


def planned_of(values, arms, tmp_path, key="rounds.lr", table=TABLE, conf="digits"):
    sweep = Sweep(key, values, arms, [0, 1])
    return plan_sweep(table, load_conf(conf), sweep, tmp_path)


def test_a_value_is_an_override_of_an_arm(tmp_path):
    planned = planned_of(["0", "30"], ["exemplars", "mimic"], tmp_path, "exemplars")
    assert list(planned)[:4] == [("0", *key) for key in plan_keys()]
    assert planned["30", "exemplars", 1].conf.exemplars == 30
    assert planned["0", "exemplars", 1].conf.exemplars == 0
    assert planned["30", "mimic", 0].conf.method.name == "central"
    assert len({each.job.folder for each in planned.values()}) == 8


def plan_keys():
    return [("mimic", 0), ("mimic", 1), ("exemplars", 0), ("exemplars", 1)]


def test_a_value_and_the_same_change_of_an_arm_are_the_same_job(tmp_path):
    planned = planned_of(["0.03"], ["strict"], tmp_path)
    conf = load_conf("digits", ["arms.changes.strict=[rounds.lr=0.03]"])
    as_arm = plan_arms(TABLE, conf, ["strict"], [0], tmp_path)
    assert planned["0.03", "strict", 0].job.key == as_arm["strict", 0].job.key


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("rounds.lr", ["0.1", "fast"], r"^rounds\.lr=fast: must be a number$"),
        ("rounds.rate", ["1"], r"^rounds\.rate: unknown key; allowed here: "),
        ("rounds.count", ["2", "0"], r"^rounds\.count=0: must be at least 1$"),
    ],
)
def test_a_value_that_cannot_be_is_refused_before_anything_is_written(
    key, values, message, tmp_path
):
    with pytest.raises(ConfError, match=message):
        planned_of(values, ["strict"], tmp_path, key)
    assert not list(tmp_path.iterdir())


def test_a_configuration_may_be_the_only_arm(tmp_path):
    table, conf = only_itself(load_conf("digits"), "mine")
    sweep = Sweep("method.name", ["dc_ccl", "fedavg"], table.by_default(), [5])
    planned = plan_sweep(table, conf, sweep, tmp_path)
    names = {key: each.conf.method.name for key, each in planned.items()}
    assert names == {("dc_ccl", "mine", 5): "dc_ccl", ("fedavg", "mine", 5): "fedavg"}
    assert table.arms["mine"].title == "digits"
    assert planned["fedavg", "mine", 5].job.title == "mine, method.name=fedavg, seed 5"


def test_what_an_arm_builds_on_takes_the_values_only_where_it_is_named(tmp_path, other_method):
    alone = planned_of(["1", "2"], ["top"], tmp_path, "method.depth", BUILT, "cifar10")
    assert alone["1", "base", 0].job == alone["2", "base", 0].job
    assert alone["1", "top", 0].conf.method.backbone == alone["2", "top", 0].conf.method.backbone
    both = planned_of(["0.1", "0.2"], ["top", "base"], tmp_path, table=BUILT, conf="cifar10")
    for value in ("0.1", "0.2"):
        base, top = both[value, "base", 0], both[value, "top", 0]
        assert (base.conf.rounds.lr, top.conf.rounds.lr) == (float(value), float(value))
        assert (top.conf.method.backbone, top.job.builds_on) == (str(base.run), base.job)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("data.train_fraction", ["0.5", "0.25"]),
        ("split.device_fraction", ["0.2", "0.4"]),
        ("devices.count", ["20", "30"]),
        ("devices", ["{count: 20}", "{count: 30}"]),
    ],
)
def test_what_an_arm_builds_on_stands_on_the_same_data(tmp_path, other_method, key, values):
    planned = planned_of(values, ["top"], tmp_path, key, BUILT, "cifar10")
    for value in values:
        base, top = planned[value, "base", 0], planned[value, "top", 0]
        for part in ("data", "split", "devices"):
            assert getattr(base.conf, part) == getattr(top.conf, part)
        assert (top.conf.method.backbone, top.job.builds_on) == (str(base.run), base.job)
    assert len({planned[value, "base", 0].job.key for value in values}) == 2


def test_an_arm_that_builds_on_another_takes_no_other_run(tmp_path, other_method):
    message = r"^arm top: method\.backbone=a/run: it builds on the run of base; expected only where"
    with pytest.raises(ConfError, match=message):
        planned_of(["a/run"], ["base", "top"], tmp_path, "method.backbone", BUILT, "cifar10")
