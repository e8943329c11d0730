from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dccl_flower.config import ConfError
from dccl_flower.simulations.cli import main
from dccl_flower.simulations.scale.cases import (
    BARE,
    DCCL,
    FLOWER,
    PFL,
    Case,
    Settings,
    case_conf,
    cases,
    parse_counts,
    parse_skip,
)


def described(settings):
    return [(c.system, c.control, c.devices, c.cohort, c.workers) for c in cases(settings)]


def test_cheap_cases_come_first_and_all_that_are_compared_share_a_cohort():
    assert described(Settings(devices=(10, 100, 10_000), workers=(1, 2))) == [
        (BARE, "none", 50, 50, 1),
        (PFL, "none", 50, 50, 1),
        (FLOWER, "none", 50, 50, 1),
        (FLOWER, "none", 10, 10, 1),
        (FLOWER, "none", 100, 50, 1),
        (FLOWER, "none", 1000, 50, 1),
        (FLOWER, "none", 10, 10, 2),
        (FLOWER, "none", 100, 50, 2),
        (FLOWER, "none", 1000, 50, 2),
        (DCCL, "mimic", 50, 50, 1),
        (DCCL, "none", 50, 50, 1),
        (DCCL, "mimic", 5000, 50, 1),
        (DCCL, "none", 5000, 50, 1),
        (DCCL, "mimic", 10, 10, 1),
        (DCCL, "mimic", 100, 50, 1),
        (DCCL, "mimic", 10_000, 50, 1),
        (DCCL, "mimic", 10, 10, 2),
        (DCCL, "mimic", 100, 50, 2),
        (DCCL, "mimic", 10_000, 50, 2),
    ]


def test_what_is_measured_twice_is_measured_once():
    found = described(Settings(devices=(50, 5000), workers=(1,)))
    assert len(found) == len(set(found)) == 8


def test_parts_can_be_left_out_but_the_bare_loop():
    all_parts = frozenset({"pfl", "flower", "reference", "population"})
    assert described(Settings(skip=all_parts)) == [(BARE, "none", 50, 50, 1)]
    assert {each[0] for each in described(Settings(skip=frozenset({"pfl", "flower"})))} == {
        BARE,
        DCCL,
    }


def test_a_cohort_beyond_what_flower_bears_leaves_stock_flower_out():
    found = described(Settings(devices=(100_000,), workers=(1,), cohort=2000))
    assert FLOWER not in {system for system, *_ in found}
    assert (DCCL, "mimic", 200_000, 2000, 1) in found


def test_a_cohort_larger_than_a_population_is_refused():
    with pytest.raises(ConfError, match="--cohort 20: must be at most the 10 devices of --devices"):
        cases(Settings(devices=(10, 100), cohort=20))


@given(st.lists(st.integers(1, 10**6), min_size=1))
def test_counts_come_in_order_and_once(counts):
    text = " , ".join(map(str, counts))
    assert parse_counts("--devices", text) == tuple(sorted(set(counts)))


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "10,", "ten", "1e3", "\u00b2"])
def test_what_is_no_count_is_refused(text):
    with pytest.raises(ConfError, match=r"--workers '.*': expected integers from 1 up"):
        parse_counts("--workers", text)


def test_unknown_parts_are_refused():
    assert parse_skip("") == frozenset()
    assert parse_skip("pfl, flower") == {"pfl", "flower"}
    with pytest.raises(ConfError, match="--skip 'bare': unknown; allowed are pfl, flower"):
        parse_skip("bare")


@pytest.mark.parametrize(
    ("case", "nodes"),
    [
        (Case(FLOWER, "none", 1000, 50, 2), 1000),
        (Case(DCCL, "mimic", 5, 5, 2), 5),
        (Case(DCCL, "mimic", 100_000, 50, 2), 8),
    ],
)
def test_a_case_is_a_configuration(case, nodes):
    conf = case_conf(case, "scale", ["wire.codec=fp16"], Settings(rounds=3, steps=7))
    assert (conf.devices.count, conf.devices.per_round) == (case.devices, case.cohort)
    assert (conf.runtime.nodes, conf.runtime.workers) == (nodes, 2)
    assert (conf.rounds.count, conf.rounds.local_steps) == (3, 7)
    assert (conf.control, conf.wire.codec) == (case.control, "fp16")
    assert conf.runtime.reuse


def test_titles_name_the_mimic_where_it_is_the_exception():
    titles = [Case(s, c, 1000, 50, w).title for s, c, w in ((DCCL, "none", 1), (BARE, "mimic", 2))]
    assert titles == [
        "DC-CCL without mimic, 1,000 devices, 1 worker",
        "bare torch loop with mimic, 1,000 devices, 2 workers",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--devices", "10,x"], "--devices 'x': expected integers from 1 up"),
        (["--workers", "0"], "--workers '0': expected integers from 1 up"),
        (["--cohort", "11", "--devices", "10"], "--cohort 11: must be at most the 10 devices"),
        (["--rounds", "1"], "Invalid value for '--rounds'"),
        (["--skip", "everything"], "--skip 'everything': unknown"),
        (["--conf", "nosuch"], "conf 'nosuch': expected one of"),
        (["wire.codec=fp8"], "wire.codec=fp8: must be one of fp32, fp16, int8"),
    ],
)
def test_a_mistake_is_one_line_and_starts_nothing(
    arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dccl", "scale", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    errors = capsys.readouterr().err
    assert ended.value.code == 2
    assert errors.startswith("dccl: ")
    assert errors.count("\n") == 1
    assert message in errors
    assert list(tmp_path.iterdir()) == []
