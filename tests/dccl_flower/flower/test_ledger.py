from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from dccl_flower.flower.ledger import Ledger, config_bytes


def arrays():
    return ArrayRecord({"w": Array(np.zeros(10, dtype=np.float32))})


def test_a_message_is_counted_by_kind():
    ledger = Ledger()
    config = ConfigRecord({"lr": 0.1, "mimic": b"m" * 100, "exemplars": b"e" * 30})
    ledger.sent(RecordDict({"arrays": arrays(), "config": config}), "co")
    assert ledger.totals["mimic_down"] == 100
    assert ledger.totals["exemplars_down"] == 30
    # A float is 8 bytes; the names lr, mimic and exemplars are 2 + 5 + 9.
    assert ledger.totals["other_down"] == 8 + 16
    assert ledger.totals["co_down"] == len("w") + len(arrays()["w"].data)


def test_a_reply_is_counted_as_what_its_arrays_are():
    ledger = Ledger()
    reply = RecordDict({"arrays": arrays(), "metrics": MetricRecord({"n": 3})})
    ledger.received(reply, "co")
    ledger.received(reply, "head_gradient")
    size = len("w") + len(arrays()["w"].data)
    assert dict(ledger.totals) == {"co_up": size, "head_gradient_up": size, "other_up": 2 * 9}


def test_rounds_are_closed_one_by_one():
    ledger = Ledger()
    config = RecordDict({"config": ConfigRecord({"mimic": b"m" * 95})})
    ledger.sent(config)
    assert ledger.close_round() == (100, 0)
    ledger.sent(config)
    ledger.received(RecordDict({"metrics": MetricRecord({"n": 3})}))
    assert ledger.close_round() == (100, 9)
    assert ledger.close_round() == (0, 0)


def test_each_parcel_is_a_kind_of_its_own_under_its_own_name():
    ledger = Ledger()
    parcels = {"beside.correction": b"c" * 40, "beside.statistics-cloud": b"s" * 9}
    ledger.sent(RecordDict({"config": ConfigRecord(parcels)}))
    names = len("".join(parcels))
    assert dict(ledger.totals) == {
        "correction_down": 40,
        "statistics_cloud_down": 9,
        "other_down": names,
    }
    assert ledger.close_round() == (49 + names, 0)


def test_only_the_bytes_of_a_blob_count_as_a_blob():
    ledger = Ledger()
    ledger.sent(RecordDict({"config": ConfigRecord({"correction": "none"})}))
    assert ledger.totals["correction_down"] == 0
    assert ledger.totals["other_down"] == len("correction" + "none")


def test_devices_that_share_a_message_count_as_if_each_had_its_own():
    alone, shared = Ledger(), Ledger()
    config = {"lr": 0.1, "mimic": b"m" * 100, "exemplars": b"e" * 30, "correction": b"c" * 7}
    without = {key: value for key, value in config.items() if key != "mimic"}
    for own in (config, config, without):
        alone.sent(RecordDict({"arrays": arrays(), "config": ConfigRecord(own)}), "co")
    content = RecordDict({"arrays": arrays(), "config": ConfigRecord(config)})
    shared.sent(content, "co", 3, {"mimic": 2, "exemplars": 3})
    for kind in ("co_down", "exemplars_down", "correction_down"):
        assert shared.totals[kind] == alone.totals[kind] == 3 * (alone.totals[kind] // 3) > 0
    assert shared.totals["mimic_down"] == alone.totals["mimic_down"] == 200
    # The name of the blob that one of them lacks no more is all that is counted once too often.
    assert shared.totals["other_down"] == alone.totals["other_down"] + len("mimic")


def test_a_merged_copy_counts_as_the_arrays_it_stands_for():
    ledger = Ledger()
    reply = RecordDict({"arrays": arrays(), "metrics": MetricRecord({"n": 3})})
    ledger.received(reply, "co", 1234)
    assert (ledger.totals["co_up"], ledger.totals["other_up"]) == (1234, 9)


@given(st.dictionaries(st.text(), st.integers(0, 9) | st.text() | st.lists(st.text())))
def test_a_config_counts_as_flower_counts_it_and_what_is_empty_by_its_key(values):
    def is_filled(value):
        return isinstance(value, int) or len(value) > 0

    filled = ConfigRecord({key: value for key, value in values.items() if is_filled(value)})
    empty = sum(len(key) for key, value in values.items() if not is_filled(value))
    assert config_bytes(ConfigRecord(values)) == filled.count_bytes() + empty
