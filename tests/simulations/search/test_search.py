from __future__ import annotations

import pytest

from dccl_flower.config import ConfError
from dccl_flower.config_loading import load_conf
from dccl_flower.simulations.arms.arms import Arm, ArmTable
from dccl_flower.simulations.jobs import Outcome
from dccl_flower.simulations.search.report import markdown
from dccl_flower.simulations.search.search import Search, headline_arms, num_jobs, two_that_matter
from dccl_flower.simulations.search.space import Candidate, Space, load_space
from dccl_flower.simulations.superlink import RunError

SPACE = load_space("dc_ccl")
BASE, POOL, CENTRAL = SPACE.base, SPACE.pool, SPACE.bounds


class ScoredByRule:
    """Stands in for the runner: a candidate's accuracy follows from its configuration."""

    def __init__(self, score):
        self.score = score
        self.batches = []

    def run(self, jobs):
        confs = [load_conf(str(job.folder / "conf.yaml")) for job in jobs]
        self.batches.append(confs)
        return [Outcome(job, self.score(conf)) for job, conf in zip(jobs, confs, strict=True)]


def scores(conf):
    accuracy = 0.5
    accuracy += 0.1 * (conf.normalisation == "group_ws") + 0.05 * (conf.loss == "prior_corrected")
    accuracy += 0.02 * (conf.head_tuning == "federated") + 0.03 * (conf.exemplars > 0)
    accuracy += 0.01 * (conf.exemplar_choice == "herded") + 0.001 * (conf.rounds.count > 5)
    costs = {"swing": 0.01, "bytes_a_device": 1e6, "reference": 0.4}
    return {"score": accuracy, "scores": {"accuracy": accuracy}, **costs}


def few_changes():
    """Return a space that is searched in seconds."""
    names = ["start from the mimic", "start from the mimic, its statistics frozen", "group norm"]
    names += ["prior correction", "head tuning"]
    return Space(BASE, {name: POOL[name] for name in names}, {}, CENTRAL)


def searched(tmp_path, score=scores, space=SPACE):
    runner = ScoredByRule(score)
    search = Search(load_conf("digits"), tmp_path, runner, space)
    search.run()
    return search, runner


@pytest.fixture(scope="module")
def default_search(tmp_path_factory):
    """One search for many questions: it reads some hundred configurations."""
    return searched(tmp_path_factory.mktemp("search"))


@pytest.mark.parametrize("changes", [*POOL.values(), *CENTRAL.values()])
def test_every_candidate_is_a_configuration(changes):
    load_conf("digits", [*BASE, *(change.format(twice=0.2, half=0.05) for change in changes)])


def test_every_change_changes_the_base():
    base = load_conf("digits", BASE)
    for name, changes in POOL.items():
        assert load_conf("digits", [*BASE, *changes]) != base, name


def test_a_third_of_the_rounds_first_and_all_rounds_for_the_best_fifth(default_search):
    _, runner = default_search
    central, short, full = runner.batches[:3]
    assert {conf.rounds.count for conf in central} == {15}
    assert {conf.rounds.count for conf in short} == {5}
    assert len(short) == len(POOL) + 1
    assert {conf.rounds.count for conf in full} == {15}
    assert len(full) == -(-len(short) // 5)
    worst_kept = min(scores(conf)["score"] for conf in full)
    assert worst_kept >= sorted(scores(conf)["score"] for conf in short)[-len(full)]


def test_the_settings_that_a_configuration_has_are_scored_beside_the_candidates(tmp_path):
    search = Search(load_conf("fashion_mnist"), tmp_path, ScoredByRule(scores), SPACE)
    search.run()
    headlines = {row["name"]: row for row in search.scored if row["stage"] == "headline"}
    assert list(headlines) == ["published", "strict", "exemplars"]
    assert "rounds.count=45" in headlines["strict"]["overrides"]
    assert {conf.rounds.count for conf in search.runner.batches[0]} == {15, 45}


def test_a_headline_setting_that_cannot_run_is_told_before_anything_runs(tmp_path):
    runner = ScoredByRule(scores)
    conf = load_conf("digits", ["arms.changes.strict=[rounds.lr=fast]"])
    search = Search(conf, tmp_path, runner, SPACE)
    with pytest.raises(ConfError, match=r"rounds\.lr"):
        search.run()
    assert not runner.batches


def test_an_arm_that_needs_another_s_run_is_no_candidate():
    rows = {"base": Arm("B", curve=True), "top": Arm("T", curve=True, builds_on="base")}
    assert list(headline_arms(ArmTable({**rows, "plain": Arm("P")}))) == ["base"]


def test_the_search_finds_the_sum_of_what_helps(default_search):
    search, _ = default_search
    full = [row for row in search.scored if row["all_rounds"] and row["kind"] == "federated"]
    best = max(full, key=lambda row: row["score"])
    assert set(best["changes"]) >= {
        "group norm + weight standardisation",
        "prior correction",
        "500 exemplars, herded",
    }
    strict = [row for row in full if not any("exemplars" in change for change in row["changes"])]
    best_strict = max(strict, key=lambda row: row["score"])
    assert set(best_strict["changes"]) >= {"prior correction", "head tuning"}


def test_no_combination_sets_a_key_twice(default_search):
    search, runner = default_search
    for row in search.scored:
        keys = dict(override.split("=") for override in row["overrides"])
        assert len(keys) == len(set(row["overrides"])), row["name"]
    assert sum(map(len, runner.batches)) <= num_jobs(SPACE, 3)


def test_no_combination_is_another_in_more_words(tmp_path):
    def score(conf):
        best = conf.model.co_start == "mimic" and conf.normalisation == "batch_frozen"
        return {**scores(conf), "score": 0.8 if best else scores(conf)["score"]}

    search, _ = searched(tmp_path, score, few_changes())
    best, part = "start from the mimic, its statistics frozen", "start from the mimic"
    assert any(best in row["changes"] for row in search.scored if len(row["changes"]) > 1)
    assert not any({best, part} <= set(row["changes"]) for row in search.scored)


def test_best_candidates_are_joined_once_and_only_where_that_adds_something(default_search):
    search, _ = default_search
    joined = [frozenset(row["overrides"]) for row in search.scored if row["stage"] == "together"]
    grown = [frozenset(row["overrides"]) for row in search.scored if row["stage"] == "with both"]
    assert joined
    assert len(set(joined)) == len(joined)
    assert not set(joined) & set(grown)


def test_the_two_that_matter_do_not_clash():
    def alone(name):
        return Candidate("alone", (name,), tuple(POOL[name]))

    ranked = [alone(n) for n in ("500 exemplars", "group norm", "frozen statistics", "scaffold")]
    assert two_that_matter(ranked, SPACE) == ("group norm", "scaffold")


def test_the_two_that_matter_are_not_one_in_the_other():
    whole, part = "start from the mimic, its statistics frozen", "start from the mimic"
    ranked = [Candidate("alone", (name,), tuple(POOL[name])) for name in (whole, part, "scaffold")]
    assert two_that_matter(ranked, SPACE) == (whole, "scaffold")


def test_a_candidate_that_fails_is_reported_and_left_behind(tmp_path):
    def score(conf):
        return None if conf.normalisation == "group" else scores(conf)

    search, _ = searched(tmp_path, score, few_changes())
    failed = [row for row in search.scored if "error" in row]
    assert failed
    assert all("group norm" in row["changes"] for row in failed)
    assert "failed" in markdown(search.scored, load_conf("digits"), "dccl search digits")


def test_a_search_of_which_nothing_comes_through_says_so(tmp_path):
    with pytest.raises(RunError, match="no two changes that add to one another came through"):
        searched(tmp_path, lambda conf: None, few_changes())


def test_the_report_measures_the_gap_against_the_best_central_candidate(default_search):
    search, _ = default_search
    text = markdown(search.scored, load_conf("digits"), "dccl search digits")
    assert "```bash\ndccl search digits\n```" in text
    assert "seed 0, 240 steps a side" in text
    for stage in ("bound", "alone", "with one", "with both", "together"):
        assert f"## {stage}\n" in text
    # the best central candidate has 0.601, the cloud submodel 0.4, the base 0.5 in a third
    assert "| base | a third | 50.0 | 0.50 | 1.0 | 1.00 |" in text
