from __future__ import annotations

import io

from rich.console import Console

from dccl_flower.simulations.run.display import Display, results_table


def shown(events, **options):
    console = Console(file=io.StringIO(), width=120, **options)
    with Display(console) as display:
        display.note("starting Flower")
        for event in events:
            display.show(event)
    return console.file.getvalue()


def round_event(number, seconds):
    sizes = {"bytes_down": 1_500_000, "bytes_up": 500_000}
    return {
        "event": "round",
        "round": number,
        "total": 4,
        "score": "accuracy",
        "accuracy": 0.5,
        "seconds": seconds,
        **sizes,
    }


EVENTS = [
    {"event": "started", "time": 100.0},
    {"event": "phase", "phase": "pretrain", "done": 1, "total": 3, "time": 104.0},
    {"event": "phase", "phase": "pretrain", "done": 2, "total": 3, "time": 112.0},
    {"event": "phase", "phase": "pretrain", "done": 3, "total": 3, "time": 118.0},
    round_event(1, seconds=9.0),
    round_event(2, seconds=2.0),
    {"event": "finished"},
]


def test_plain_lines_tell_phase_round_accuracy_bytes_and_time_left():
    assert shown(EVENTS).splitlines() == [
        "starting Flower",
        "pretrain: epoch 2/3, about 6 s left",
        "pretrain: 3 epochs done",
        "round 1/4: accuracy 50.0%, 2.0 MB sent",
        "round 2/4: accuracy 50.0%, 4.0 MB sent, about 4 s left",
    ]


def test_a_terminal_shows_the_same_live():
    text = shown(EVENTS, force_terminal=True)
    assert "round 2/4, accuracy 50.0%, 4.0 MB sent" in text


def test_what_an_earlier_attempt_sent_counts():
    prepared = {"event": "prepared", "bytes": 7_000_000, "virtual": 1.5}
    after = {**round_event(3, seconds=1.0), "virtual_seconds": 0.5}
    told = "round 3/4: accuracy 50.0%, 9.0 MB sent, 2 virtual s, about 2 s left"
    assert shown([*EVENTS[:-1], prepared, after]).splitlines()[-1] == told


def test_the_table_has_a_row_a_model():
    scores = {"accuracy": 0.8, "accuracy_cloud_classes": 0.9, "accuracy_device_classes": 0.4}
    results = {
        "conf": {"name": "toy"},
        "seed": 3,
        "references": {"cloud_submodel": scores, "mimic": scores},
        "final": {**scores, "accuracy": 0.95},
    }
    console = Console(file=io.StringIO(), width=120)
    console.print(results_table(results))
    text = console.file.getvalue()
    assert "toy, seed 3" in text
    assert "95.0%" in text
    assert text.count("90.0%") == 3
