from __future__ import annotations

import math

import pytest

from dccl_flower.simulations.scale.cases import BARE, DCCL, FLOWER, PFL
from dccl_flower.simulations.scale.report import markdown, ratios, same_steps


def row(system, control, devices, cpu, workers=1, share=0.0, memory=500.0):
    turn = {"cpu_s": cpu, "wall_s": 2 * cpu, "bytes": 1000.0, "new_share": share, "turns": 200}
    return {
        "system": system,
        "control": control,
        "devices": devices,
        "cohort": 50,
        "workers": workers,
        "first": {**turn, "cpu_s": 10 * cpu, "bytes": 5000.0},
        "later": turn,
        "turns_per_s": 1 / (2 * cpu),
        "mimic_share": share if system == DCCL and control == "mimic" else float(control != "none"),
        "driver_mb": 900.0,
        "worker_mb": memory,
        "ray_mb": 700.0,
        "seconds_to_first_turn": 12.34,
    }


@pytest.fixture
def rows():
    return [
        row(BARE, "none", 50, 0.100),
        row(BARE, "mimic", 50, 0.140),
        row(PFL, "none", 50, 0.096),
        row(FLOWER, "none", 50, 0.160),
        row(DCCL, "mimic", 50, 0.112),
        row(DCCL, "none", 50, 0.110),
        row(DCCL, "mimic", 5000, 0.150, share=1.0),
        row(DCCL, "none", 5000, 0.110, share=1.0),
        row(DCCL, "mimic", 10, 0.2),
        row(DCCL, "mimic", 100, 0.120, share=0.25),
        row(DCCL, "mimic", 10_000, 0.150, share=1.0, memory=525.0),
        row(DCCL, "mimic", 10_000, 0.3, workers=2, share=1.0),
    ]


def by_name(rows):
    return {ratio["name"]: ratio["value"] for ratio in ratios(rows)}


def test_comparisons_are_made_at_one_cohort_as_population(rows):
    found = by_name(rows)
    assert found["turn / bare loop of the same steps"] == pytest.approx(1.12)
    assert found["overhead / stock Flower's overhead"] == pytest.approx(0.2)
    assert found["turn / pfl-research's turn"] == pytest.approx(112 / 96)
    assert found["turn / turn without mimic"] == pytest.approx(112 / 110)
    assert found["first turn of a device / the same without mimic"] == pytest.approx(150 / 110)


def test_populations_are_held_against_a_hundred_devices_of_as_many_workers(rows):
    found = by_name(rows)
    name = "at 10,000 devices / at 100, 1 worker"
    assert found[f"turn {name}"] == pytest.approx(1.25)
    # By the bare loop, new devices cost 140 against 110 at a hundred, of which a quarter is new.
    assert found[f"turn {name}, for the same steps"] == pytest.approx(1.25 / (140 / 110))
    assert found[f"worker memory {name}"] == pytest.approx(1.05)
    assert not any("2 workers" in each or "at 10 devices" in each for each in found)


def test_the_same_steps_count_as_many_passes_of_the_mimic(rows):
    assert same_steps(rows[9], rows) == pytest.approx(0.110)
    assert same_steps(rows[3], rows) == pytest.approx(0.100)
    assert math.isnan(same_steps(rows[3], rows[1:]))


def test_goals_stand_beside_what_was_measured(rows):
    goals = {ratio["name"]: ratio["goal"] for ratio in ratios(rows)}
    assert goals["turn / bare loop of the same steps"] == 1.15
    assert goals["overhead / stock Flower's overhead"] == pytest.approx(1 / 3)
    assert goals["worker memory at 10,000 devices / at 100, 1 worker"] == 1.1


def test_what_is_missing_is_no_number(rows):
    assert set(by_name(rows[:1]).values()) == {None}
    assert set(by_name([]).values()) == {None}
    failed = {**rows[4], "error": "lost"}
    del failed["later"]
    assert by_name([rows[0], failed])["turn / bare loop of the same steps"] is None


def test_a_population_that_failed_is_no_number_either(rows):
    failed = {**rows[10], "error": "lost"}
    del failed["later"]
    found = by_name([*rows[:10], failed])
    assert found["turn at 10,000 devices / at 100, 1 worker"] is None
    assert "| DC-CCL | 10,000 | 50 | 1 | failed |" in markdown([*rows[:10], failed], "c")


def test_ratios_come_before_the_table_and_the_command_before_both(rows):
    note = {key: rows[2][key] for key in ("system", "control", "devices", "cohort", "workers")}
    text = markdown([*rows[:2], {**note, "note": "not installed"}, *rows[3:]], "dccl scale --x")
    command, ratio, table = map(text.index, ("dccl scale --x", "| ratio |", "| system |"))
    assert command < ratio < table
    assert "| overhead / stock Flower's overhead | 0.20 | 0.33 |" in text
    assert "| pfl-research | 50 | 50 | 1 | not installed | - |" in text
    assert "| turn / pfl-research's turn | - | 1.20 |" in text
    line = next(line for line in text.splitlines() if line.startswith("| DC-CCL | 100 |"))
    assert [cell.strip() for cell in line.split("|")[1:-1]] == [
        *("DC-CCL", "100", "50", "1", "1.09"),
        *("4.2", "1200.0", "120.0", "240.0", "25", "5", "1", "900", "500", "700", "12.3"),
    ]


def test_every_row_of_the_table_has_a_cell_for_every_heading(rows):
    lines = markdown(rows, "c").splitlines()
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("| system |")) :]
    widths = {line.count("|") for line in table if line.startswith("|")}
    assert len(widths) == 1
