from __future__ import annotations

import json
from pathlib import Path

import pytest

from dccl_flower.config import ConfError
from dccl_flower.config_loading import load_conf
from dccl_flower.simulations.arms.arms import (
    RUN_ARM,
    Arm,
    ArmTable,
    arm_conf,
    load_arms,
    parse_arms,
    parse_seeds,
    plan_arms,
)

TABLE = load_arms("dc_ccl")
EXEMPLARS = "arms.changes.exemplars=[exemplars=50,rounds.lr=0.07]"
PUBLISHED = "arms.changes.published=[loss=ce]"


BUILT = ArmTable(
    {
        "top": Arm("top", ["method.name=other"], builds_on="middle"),
        "plain": Arm("plain"),
        "middle": Arm("middle", ["method.name=other"], builds_on="base"),
        "base": Arm("base"),
    }
)
DOCS = Path(__file__).parents[3] / "docs"


def test_a_subset_of_the_arms_runs_once_each():
    assert parse_arms("strict, mimic,strict", TABLE) == ["strict", "mimic"]
    assert parse_arms("heterofl", TABLE) == ["heterofl"]


def test_by_default_those_arms_run_that_the_measured_table_has():
    text = (DOCS / "fusion.md").read_text()
    _, _, below = text.partition("```bash\ndccl arms probe data.path=PATH/TO/cifar10 --seeds 0,1,2")
    table = below[below.index("| arm |") :].partition("\n\n")[0]
    measured = [line.split("|")[1].strip() for line in table.splitlines()[2:]]
    rows = load_arms(load_conf("probe").arms.rows)
    assert [rows.arms[name].title for name in parse_arms(None, rows)] == measured


def test_rows_of_which_none_runs_by_default_want_to_be_named():
    rows = ArmTable({"only": Arm("only", by_default=False)})
    assert parse_arms("only", rows) == ["only"]
    with pytest.raises(ConfError, match=r"^--arms: none runs by default; allowed are only$"):
        parse_arms(None, rows)
    with pytest.raises(ConfError, match=r"allowed are none$"):
        parse_arms(None, ArmTable({}))


@pytest.mark.parametrize("text", ["bogus", "strict,,mimic", ""])
def test_an_unknown_arm_is_named_with_what_is_allowed(text):
    with pytest.raises(ConfError, match=r"unknown arm; allowed are cloud-submodel, mimic"):
        parse_arms(text, TABLE)


def test_seeds_in_the_order_given():
    assert parse_seeds("2, 0,2,1") == [2, 0, 1]


@pytest.mark.parametrize("text", ["a", "1,,2", "1.5", "-1", ""])
def test_a_seed_that_is_no_integer_is_named(text):
    with pytest.raises(ConfError, match=r"--seeds '.*': expected integers"):
        parse_seeds(text)


def test_an_arm_lays_its_variant_and_then_its_own_change_over_the_configuration():
    conf = arm_conf(TABLE, "distr-d", load_conf("digits", [PUBLISHED, "rounds.lr=0.3"]), 4)
    assert (conf.loss, conf.control, conf.rounds.lr, conf.seed) == ("ce", "cloud_submodel", 0.3, 4)
    assert conf.runtime.reuse
    assert arm_conf(TABLE, "no-control", load_conf("digits", [PUBLISHED]), 4).control == "none"
    assert arm_conf(TABLE, "strict", load_conf("digits", [PUBLISHED]), 4).loss == "prior_corrected"
    assert arm_conf(TABLE, "exemplars", load_conf("digits", [EXEMPLARS]), 4).rounds.lr == 0.07


def test_an_arm_s_paths_mean_the_same_in_its_own_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ["devices.profiles=./mine.yaml", "data.path=data"]
    conf = arm_conf(TABLE, "published", load_conf("digits", given), 0)
    assert conf.devices.profiles == f"{tmp_path}/mine.yaml"
    assert conf.data.path == f"{tmp_path}/data"


def test_a_change_of_an_arm_that_there_is_not_is_refused():
    with pytest.raises(ConfError, match=r"^arms\.changes\.strikt: no such arm or group; arms are"):
        arm_conf(TABLE, "strict", load_conf("digits", ["arms.changes.strikt=[loss=ce]"]), 0)


def test_an_arm_may_be_of_another_method():
    conf = arm_conf(TABLE, "fedavg", load_conf("digits", ["loss=ce", "rounds.lr=0.3"]), 0)
    assert (conf.method.name, conf.rounds.lr) == ("fedavg", 0.3)
    assert not hasattr(conf, "loss")


def test_rows_may_start_from_others():
    mixed = load_arms("mixed")
    assert list(mixed.arms) == [*TABLE.arms, "masked-submodel"]
    assert (mixed.low, mixed.high) == (TABLE.low, TABLE.high)
    assert "normalisation=batch_mixed" in mixed.arms["strict"].set


def test_rows_that_start_from_themselves_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("{arms: {}, like: b.yaml}")
    Path("b.yaml").write_text("{arms: {}, like: a.yaml}")
    with pytest.raises(ConfError, match=r"^arms\.rows=a\.yaml: like: leads back here$"):
        load_arms("a.yaml")


def test_shared_work_comes_first_and_folders_differ_by_content(tmp_path):
    arms = ["strict", "mimic", "cloud-submodel", "central-m"]
    jobs = plan_arms(TABLE, load_conf("digits"), arms, [0, 1], tmp_path)
    assert list(jobs)[:2] == [("cloud-submodel", 0), ("cloud-submodel", 1)]
    assert list(jobs)[2:5] == [("mimic", 0), ("central-m", 0), ("strict", 0)]
    assert len({each.job.folder for each in jobs.values()}) == 8
    again = plan_arms(TABLE, load_conf("digits"), arms, [0, 1], tmp_path)
    assert again == jobs
    changed = plan_arms(TABLE, load_conf("digits", ["rounds.lr=0.01"]), arms, [0, 1], tmp_path)
    assert changed["strict", 0].job.key != jobs["strict", 0].job.key
    other = load_conf("digits", ["arms.changes.exemplars=[exemplars=7]"])
    other_arm = plan_arms(TABLE, other, arms, [0, 1], tmp_path)
    assert other_arm == jobs


def test_a_plan_is_written_only_where_it_is_laid_down(tmp_path):
    (planned,) = plan_arms(TABLE, load_conf("digits"), ["mimic"], [3], tmp_path).values()
    assert not list(tmp_path.iterdir())
    job = planned.lay_down()
    assert job.title == "mimic, seed 3"
    assert load_conf(str(job.folder / "conf.yaml")) == planned.conf
    description = json.loads((job.folder / "job.json").read_text())
    facts = {"arm": "mimic", "in_process": False}
    assert description == {"function": RUN_ARM, "key": job.key, **facts}


def test_what_runs_in_this_process_is_another_job(tmp_path):
    conf = load_conf("digits")
    (flower,) = plan_arms(TABLE, conf, ["mimic"], [3], tmp_path).values()
    (here,) = plan_arms(TABLE, conf, ["mimic"], [3], tmp_path, in_process=True).values()
    assert here.job.key != flower.job.key
    assert json.loads((here.lay_down().folder / "job.json").read_text())["in_process"] is True


def test_overrides_win_over_what_an_arm_sets(tmp_path):
    planned = plan_arms(TABLE, load_conf("digits"), ["strict"], [0], tmp_path, ["exemplars=30"])
    assert planned["strict", 0].conf.exemplars == 30
    same = load_conf("digits", ["arms.changes.strict=[exemplars=30]"])
    (changed,) = plan_arms(TABLE, same, ["strict"], [0], tmp_path).values()
    assert changed.job.folder == planned["strict", 0].job.folder
    assert planned["strict", 0].job.title == "strict, exemplars=30, seed 0"


def test_what_is_built_on_comes_first_and_its_run_is_the_backbone(tmp_path, other_method):
    planned = plan_arms(BUILT, load_conf("cifar10"), ["top", "plain", "middle"], [0, 1], tmp_path)
    assert list(planned) == [
        *(("plain", 0), ("plain", 1), ("base", 0), ("base", 1)),
        *(("middle", 0), ("middle", 1), ("top", 0), ("top", 1)),
    ]
    for seed in (0, 1):
        base, middle, top = (planned[name, seed] for name in ("base", "middle", "top"))
        assert base.run == base.job.folder / "run"
        assert (base.job.builds_on, middle.job.builds_on) == (None, base.job)
        assert middle.conf.method.backbone == str(base.run)
        assert (top.conf.method.backbone, top.job.builds_on) == (str(middle.run), middle.job)
    conf = load_conf("cifar10", ["rounds.lr=0.07"])
    changed = plan_arms(BUILT, conf, ["top"], [0], tmp_path)
    assert changed["top", 0].job.key != planned["top", 0].job.key


def test_another_change_of_the_base_is_another_job_of_what_builds_on_it(tmp_path, other_method):
    keys = set()
    for rate in (0.1, 0.2):
        conf = load_conf("cifar10", ["rounds.lr=0.1", f"arms.changes.base=[rounds.lr={rate}]"])
        planned = plan_arms(BUILT, conf, ["middle"], [0], tmp_path)
        assert planned["middle", 0].conf.rounds.lr == 0.1  # the configuration's own
        keys.add(planned["middle", 0].job.key)
    assert len(keys) == 2


def test_an_arm_whose_method_takes_no_run_is_refused(tmp_path):
    table = ArmTable({"a": Arm("a"), "b": Arm("b", builds_on="a")})
    with pytest.raises(ConfError, match=r"^method\.backbone: unknown key; allowed here: name"):
        plan_arms(table, load_conf("cifar10"), ["b"], [0], tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{arms: {a: {title: A, builds_on: b}}}",
            r"arms\.a\.builds_on=b: no such arm; arms are a$",
        ),
        ("{arms: {a: {title: A, builds_on: a}}}", r"arms\.a\.builds_on=a: goes in a circle$"),
        (
            "{arms: {a: {title: A, builds_on: b}, b: {title: B, builds_on: a}}}",
            r"arms\.b\.builds_on=a: goes in a circle$",
        ),
        ("{arms: {a: {title: A}}, low: b}", r"low=b: no such arm; arms are a$"),
        ("{arms: {a: {title: A}}, low: a, high: A}", r"high=A: no such arm; arms are a$"),
        ("{arms: {}, like: mixed, high: central}", r"high=central: no such arm; arms are cloud-"),
    ],
)
def test_rows_that_name_an_arm_that_cannot_be_are_refused(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(text)
    with pytest.raises(ConfError, match=rf"^arms\.rows=mine\.yaml: {message}"):
        load_arms("mine.yaml")


def test_rows_may_build_on_those_that_they_start_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("{arms: {mine: {title: M, builds_on: strict}}, like: mixed}")
    table = load_arms("mine.yaml")
    assert table.bases("mine") == ["strict"]
    assert (table.low, table.high) == ("cloud-submodel", "central-m")


def test_no_arm_may_take_more_steps_than_the_central_ones(tmp_path):
    conf = load_conf("digits", ["arms.changes.strict=[rounds.count=30]"])
    with pytest.raises(ConfError, match=r"arm strict: 480 steps are more than the 240"):
        plan_arms(TABLE, conf, ["central-m", "strict"], [0], tmp_path)
    plan_arms(TABLE, conf, ["strict"], [0], tmp_path)
    assert arm_conf(TABLE, "strict", conf, 0).rounds.steps == 480


@pytest.mark.parametrize("name", ["digits", "fashion_mnist", "paper", "probe"])
def test_every_arm_of_these_configurations_is_possible(name, tmp_path):
    conf = load_conf(name)
    table = load_arms(conf.arms.rows)
    assert len(plan_arms(table, conf, list(table.arms), [0], tmp_path)) == len(table.arms)
