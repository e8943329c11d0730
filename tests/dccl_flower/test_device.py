from __future__ import annotations

import pytest
import torch

from dccl_flower.device import Memory
from dccl_flower.device_store import DeviceStore, sha256
from dccl_flower.faults import BadAnswer

ONES, TWOS = {"w": torch.ones(2)}, {"w": torch.full((2,), 2.0)}


@pytest.fixture
def store(tmp_path):
    return DeviceStore(tmp_path / "store")


def kept(store, device, name="momentum", run="a", **where):
    state = Memory(store, device, run, (9, 0)).kept(name, **where)
    return None if state is None else state["w"].tolist()


def test_what_a_device_keeps_under_a_name_is_its_own(store):
    Memory(store, 1, "a", (1, 0)).keep("momentum", ONES)
    assert kept(store, 1) == [1.0, 1.0]
    assert kept(store, 1, "other") is None
    assert kept(store, 11) is None
    Memory(store, 2, "a", (1, 0)).keep("momentum", TWOS)
    assert (kept(store, 1), kept(store, 2)) == ([1.0, 1.0], [2.0, 2.0])


def test_it_is_of_one_run_unless_it_holds_for_all(store):
    Memory(store, 1, "a", (1, 0)).keep("momentum", ONES)
    assert kept(store, 1, run="b") is None
    Memory(store, 1, "a", (1, 0)).keep("logits", TWOS, of_all_runs=True)
    assert kept(store, 1, "logits", run="b", of_all_runs=True) == [2.0, 2.0]


def versions(tmp_path):
    return sorted(path.name for path in (tmp_path / "store").rglob("*-*"))


def filled(number):
    return {"w": torch.full((2,), float(number))}


def test_a_turn_that_is_taken_twice_finds_what_was_there_before_both(store):
    Memory(store, 1, "a", (1, 0)).keep("momentum", ONES)
    for _ in range(2):
        again = Memory(store, 1, "a", (2, 0))
        assert again.kept("momentum")["w"].tolist() == [1.0, 1.0]
        again.keep("momentum", TWOS)
        assert again.kept("momentum")["w"].tolist() == [1.0, 1.0]
    assert Memory(store, 1, "a", (2, 1)).kept("momentum")["w"].tolist() == [2.0, 2.0]


@pytest.mark.parametrize(("keep_last", "left"), [(1, ["8-0", "9-0"]), (2, ["7-0", "8-0", "9-0"])])
def test_what_no_round_will_be_asked_with_is_removed(store, tmp_path, keep_last, left):
    for number in (2, 6, 7, 8, 9):
        Memory(store, 1, "a", (number, 0), keep_last).keep("momentum", filled(number))
    assert versions(tmp_path) == left


def test_what_a_lost_round_kept_does_not_outlive_one_that_is_asked_again(store, tmp_path):
    for number in (1, 2, 3):
        Memory(store, 1, "a", (number, 0), 5).keep("momentum", filled(number))
    Memory(store, 1, "a", (2, 0), 5).keep("momentum", filled(4))
    assert versions(tmp_path) == ["1-0", "2-0"]
    assert kept(store, 1) == [4.0, 4.0]


def test_nothing_is_kept_at_first_and_asking_leaves_nothing(store, tmp_path):
    assert kept(store, 1) is None
    assert not (tmp_path / "store").exists()


def test_what_is_kept_is_not_a_blob_that_was_received(store, tmp_path):
    Memory(store, 1, "a", (1, 0)).keep("momentum", ONES)
    (path,) = (p for p in (tmp_path / "store").rglob("*") if p.is_file())
    assert not store.holds(1, sha256(path.read_bytes()))


def test_a_later_process_finds_what_an_earlier_one_kept(store, tmp_path):
    Memory(store, 1, "a", (1, 0)).keep("momentum", ONES)
    assert kept(DeviceStore(tmp_path / "store"), 1) == [1.0, 1.0]


DAMAGES = {
    "truncated": lambda content: content[:-1],
    "emptied": lambda content: b"",
    "one bit flipped": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "its hash flipped": lambda content: bytes([content[0] ^ 1]) + content[1:],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_is_damaged_is_told_once_or_made_anew(store, damage):
    for of_all_runs in (False, True):
        memory, later = Memory(store, 1, "a"), Memory(store, 1, "a", (1, 0))
        memory.keep("momentum", ONES, of_all_runs)
        (path,) = (p for p in store.own(1).rglob("*") if p.is_file())
        path.write_bytes(damage(path.read_bytes()))
        if of_all_runs:  # can be made again
            assert memory.kept("momentum", of_all_runs=True) is None
            assert memory.renewed == 1
        else:
            with pytest.raises(BadAnswer, match=r"^device 1 keeps a damaged momentum") as caught:
                later.kept("momentum")
            assert caught.value.kind == "damaged"
            assert memory.renewed == 0
        assert later.kept("momentum", of_all_runs=of_all_runs) is None
        assert not path.exists()
