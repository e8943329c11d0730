from __future__ import annotations

import hashlib
import os

import pytest

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


def test_putting_twice_changes_nothing(store, tmp_path):
    for _ in range(2):
        store.put(1, sha256(BLOB), BLOB)
    assert the_file(tmp_path).read_bytes() == BLOB
    assert store.holds(1, sha256(BLOB))


def test_an_empty_blob_can_be_held(store):
    store.put(1, sha256(b""), b"")
    assert store.get(1, sha256(b"")) == b""
