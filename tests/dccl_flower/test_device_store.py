from __future__ import annotations

import hashlib
import os
import stat

import pytest
import torch

from dccl_flower.device import Memory
from dccl_flower.device_store import DeviceStore, sha256

BLOB, OTHER = b"the mimic", b"exemplars"


@pytest.fixture
def store(tmp_path):
    return DeviceStore(tmp_path / "store")


def files(tmp_path):
    return [path for path in (tmp_path / "store" / "blobs").rglob("*") if path.is_file()]


def the_file(tmp_path):
    (path,) = files(tmp_path)
    return path


def overwrite(path, content):
    """Write other content, with a time that differs whatever the file system's clock."""
    later = path.stat().st_mtime_ns + 1_000_000_000
    path.write_bytes(content)
    os.utime(path, ns=(later, later))


def test_sha256_is_the_hexadecimal_digest():
    # FIPS 180-4's example
    assert sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(BLOB) == hashlib.sha256(BLOB).hexdigest()


def test_what_was_put_is_held_and_comes_back(store):
    assert not store.holds(3, sha256(BLOB))
    store.put(3, sha256(BLOB), BLOB)
    assert store.holds(3, sha256(BLOB))
    assert store.get(3, sha256(BLOB)) == BLOB


def test_another_blob_is_not_held(store):
    store.put(3, sha256(BLOB), BLOB)
    assert not store.holds(3, sha256(OTHER))
    store.put(3, sha256(OTHER), OTHER)
    assert store.get(3, sha256(BLOB)) == BLOB
    assert store.get(3, sha256(OTHER)) == OTHER


def test_a_blob_of_another_digest_is_refused_and_leaves_nothing(store, tmp_path):
    with pytest.raises(ValueError, match=sha256(OTHER)):
        store.put(3, sha256(OTHER), BLOB)
    assert not store.holds(3, sha256(OTHER))
    assert not store.holds(3, sha256(BLOB))
    assert files(tmp_path) == []


def test_two_devices_share_one_file_but_each_must_receive_it(store, tmp_path):
    store.put(1, sha256(BLOB), BLOB)
    assert not store.holds(2, sha256(BLOB))
    with pytest.raises(ValueError, match="device 2 does not hold"):
        store.get(2, sha256(BLOB))
    store.put(2, sha256(BLOB), BLOB)
    assert store.get(2, sha256(BLOB)) == BLOB
    assert the_file(tmp_path).read_bytes() == BLOB


def test_device_ids_that_start_alike_are_kept_apart(store):
    store.put(1, sha256(BLOB), BLOB)
    assert not store.holds(11, sha256(BLOB))


def test_a_later_process_finds_what_an_earlier_one_stored(store, tmp_path):
    store.put(1, sha256(BLOB), BLOB)
    later = DeviceStore(str(tmp_path / "store"))
    assert later.get(1, sha256(BLOB)) == BLOB
    assert not later.holds(2, sha256(BLOB))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: overwrite(path, BLOB[:-1]),
        lambda path: overwrite(path, b"THE MIMIC"),
        lambda path: overwrite(path, b""),
    ],
    ids=["deleted", "cut short", "altered in place", "emptied"],
)
def test_a_lost_or_damaged_blob_is_not_held_until_it_is_received_again(store, tmp_path, damage):
    store.put(1, sha256(BLOB), BLOB)
    assert store.holds(1, sha256(BLOB))
    damage(the_file(tmp_path))
    assert not store.holds(1, sha256(BLOB))
    with pytest.raises(ValueError, match="device 1 does not hold"):
        store.get(1, sha256(BLOB))
    store.put(1, sha256(BLOB), BLOB)
    assert store.get(1, sha256(BLOB)) == BLOB


def test_a_bit_flipped_behind_time_and_size_is_found_when_the_blob_is_read(store, tmp_path):
    store.put(1, sha256(BLOB), BLOB)
    assert store.holds(1, sha256(BLOB))
    path = the_file(tmp_path)
    times = path.stat()
    path.write_bytes(bytes([BLOB[0] ^ 1]) + BLOB[1:])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(ValueError, match="device 1 does not hold"):
        store.get(1, sha256(BLOB))
    store.put(1, sha256(BLOB), BLOB)
    assert store.get(1, sha256(BLOB)) == BLOB


def test_putting_twice_changes_nothing(store, tmp_path):
    for _ in range(2):
        store.put(1, sha256(BLOB), BLOB)
    assert the_file(tmp_path).read_bytes() == BLOB
    assert store.holds(1, sha256(BLOB))


def test_an_empty_blob_can_be_held(store):
    store.put(1, sha256(b""), b"")
    assert store.get(1, sha256(b"")) == b""


def modes(folder):
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*/")}


def test_its_folders_are_for_the_eyes_of_its_user_alone(tmp_path):
    before = os.umask(0)
    try:
        store = DeviceStore(tmp_path / "new" / "store")
        store.put(3, sha256(BLOB), BLOB)
        Memory(store, 3, "a").keep("momentum", {"w": torch.ones(2)})
    finally:
        os.umask(before)
    made = modes(tmp_path)
    assert made.keys() == {"new", "store", "blobs", "devices", "own", "3", "a", "momentum"}
    assert set(made.values()) == {0o700}


def test_in_a_folder_that_is_there_already_what_it_makes_is_private(tmp_path):
    (tmp_path / "store").mkdir(mode=0o755)
    DeviceStore(tmp_path / "store").put(3, sha256(BLOB), BLOB)
    assert modes(tmp_path) == {"store": 0o755, "blobs": 0o700, "devices": 0o700, "3": 0o700}


@pytest.mark.parametrize("device", ["../../x", "3", "", b"3", -1, True, 1.0, None, [3]])
def test_a_device_that_is_no_whole_number_is_refused_and_leaves_nothing(store, tmp_path, device):
    match = r"must be a whole number from 0$"
    with pytest.raises(ValueError, match=match):
        store.put(device, sha256(BLOB), BLOB)
    for ask in (store.holds, store.get):
        with pytest.raises(ValueError, match=match):
            ask(device, sha256(BLOB))
    with pytest.raises(ValueError, match=match):
        Memory(store, device, "a")
    assert [path for path in tmp_path.rglob("*") if path.is_dir()] == []


@pytest.mark.parametrize(
    "digest", ["../../x", "", "a" * 63, "A" * 64, "a" * 64 + "\n", b"a" * 64, 3]
)
def test_a_digest_that_is_none_is_refused(store, digest):
    for ask in (store.holds, store.get):
        with pytest.raises(ValueError, match=r"must be the 64 hexadecimal digits of a SHA-256$"):
            ask(3, digest)


@pytest.mark.parametrize("run", ["../../x", "", ".", "..", "a/b", "a\n", "a" * 65, 3, None])
def test_a_run_that_could_lead_out_of_the_store_is_refused(store, run):
    with pytest.raises(ValueError, match=r"must be up to 64 letters, digits and hyphens$"):
        Memory(store, 3, run)
