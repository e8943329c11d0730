import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dccl_flower.config import ConfError
from dccl_flower.fleet.profiles import Fleet, Tier, load_fleet
from dccl_flower.typed_yaml import names_in

TIER = {
    "name": "phone",
    "share": 1,
    "flops": "1e9",
    "memory_mb": 500,
    "down_mbps": 20,
    "up_mbps": 5.5,
    "availability": 1,
    "drop_out": 0,
}
KEYS = f"{', '.join(TIER)}, co_share"
SORTED_KEYS = ", ".join(sorted([*TIER, "co_share"]))


def tier(name="phone", share=1.0, availability=1.0, drop_out=0.0):
    return Tier(name, share, 1e9, 500, 20, 5, availability, drop_out)


def fleet(shares, num_devices, seed=0):
    tiers = tuple(tier(str(i), share) for i, share in enumerate(shares))
    return Fleet(tiers, num_devices, seed)


def tier_counts(devices):
    found = Counter(devices.tier_of(d).name for d in range(devices.num_devices))
    return [found[t.name] for t in devices.tiers]


def write_tiers(folder, *tiers):
    lines = [f"- {{{', '.join(f'{k}: {v}' for k, v in given.items())}}}" for given in tiers]
    return write(folder, "\n".join(["tiers:", *lines]))


def write(folder, text):
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


def refusal(name_or_path):
    with pytest.raises(ConfError) as caught:
        load_fleet(name_or_path, 10, 0)
    message = str(caught.value)
    start = f"devices.profiles={name_or_path}: "
    assert message.startswith(start)
    assert "\n" not in message
    return message.removeprefix(start)


@pytest.mark.parametrize(
    ("shares", "num_devices", "counts"),
    [
        # Quotas 3.5, 2.1, 1.4: floors 3, 2, 1, and the last seat to the remainder .5.
        ([0.5, 0.3, 0.2], 7, [4, 2, 1]),
        # Quotas 0.6, 0.3, 0.1: one device, and it goes to the largest.
        ([6, 3, 1], 1, [1, 0, 0]),
        # Equal remainders: the tiers named first.
        ([1, 1, 1], 5, [2, 2, 1]),
        ([23, 29, 43, 5], 100, [23, 29, 43, 5]),
        ([1e308, 1e308], 4, [2, 2]),
        ([1], 3, [3]),
    ],
)
def test_shares_are_met_up_to_rounding(shares, num_devices, counts):
    assert tier_counts(fleet(shares, num_devices)) == counts


@given(
    st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=6),
    st.integers(1, 300),
    st.integers(0, 2**62),
)
def test_every_device_has_a_tier_and_no_tier_is_a_device_off_its_quota(shares, num_devices, seed):
    counts = tier_counts(fleet(shares, num_devices, seed))
    assert sum(counts) == num_devices
    for count, share in zip(counts, shares, strict=True):
        assert abs(count - num_devices * share / math.fsum(shares)) < 1 + 1e-9


def test_the_deal_is_the_seeds_and_is_not_in_order():
    names = [[fleet([1, 1], 50, seed).tier_of(d).name for d in range(50)] for seed in (0, 0, 1)]
    assert names[0] == names[1]
    assert names[0] != names[2]
    assert names[0] != sorted(names[0])


def test_a_hundred_thousand_devices_are_dealt_exactly():
    assert tier_counts(fleet([0.5, 0.3, 0.2], 100_000)) == [50_000, 30_000, 20_000]


@given(
    st.integers(0, 2**62),
    st.lists(st.tuples(st.integers(0, 19), st.integers(1, 6)), min_size=1, max_size=30),
)
def test_answers_do_not_depend_on_what_else_is_asked(seed, questions):
    def answer(device, server_round, devices):
        return (
            devices.tier_of(device),
            devices.is_available(device, server_round),
            devices.drops_out(device, server_round),
        )

    tiers = (tier("a", 1, 0.5, 0.5), tier("b", 2, 0.3, 0.9))
    asked_in_turn = Fleet(tiers, 20, seed)
    together = [answer(*question, asked_in_turn) for question in questions]
    assert together == [answer(*question, Fleet(tiers, 20, seed)) for question in questions]


def test_a_device_is_as_available_and_as_steady_in_a_larger_fleet():
    small, large = (Fleet((tier("a", 1, 0.5, 0.5),), count, 3) for count in (10, 1000))
    for device in range(10):
        assert small.is_available(device, 4) == large.is_available(device, 4)
        assert small.drops_out(device, 4) == large.drops_out(device, 4)


def test_rounds_seeds_and_purposes_have_their_own_draws():
    def there(seed, server_round):
        devices = Fleet((tier("a", 1, 0.5, 0.5),), 200, seed)
        return [devices.is_available(d, server_round) for d in range(200)]

    def stays(seed, server_round):
        devices = Fleet((tier("a", 1, 0.5, 0.5),), 200, seed)
        return [devices.drops_out(d, server_round) is None for d in range(200)]

    leaves = [not s for s in stays(0, 1)]
    answers = [there(0, 1), there(0, 2), there(1, 1), stays(0, 1), stays(0, 2), leaves]
    assert len({tuple(a) for a in answers}) == len(answers)


def test_probabilities_are_those_of_the_tier():
    devices = Fleet((tier("often", 1, 0.8, 0.25), tier("seldom", 1, 0.1, 0.75)), 20_000, 0)
    for name, availability, drop_out in (("often", 0.8, 0.25), ("seldom", 0.1, 0.75)):
        mine = [d for d in range(20_000) if devices.tier_of(d).name == name]
        there = np.mean([devices.is_available(d, 1) for d in mine])
        gone = [s for d in mine if (s := devices.drops_out(d, 1)) is not None]
        # Five standard deviations of a mean of 10,000 draws at most.
        assert there == pytest.approx(availability, abs=0.025)
        assert len(gone) / len(mine) == pytest.approx(drop_out, abs=0.025)
        assert np.quantile(gone, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.05)
        assert 0 <= min(gone) <= max(gone) < 1


def test_certain_devices_are_always_there_and_never_go():
    devices = fleet([1], 1000)
    assert all(devices.is_available(d, 1) for d in range(1000))
    assert all(devices.drops_out(d, 1) is None for d in range(1000))


@pytest.mark.parametrize("device", [-1, 3])
def test_a_device_that_is_not_of_the_fleet_is_refused(device):
    devices = fleet([1], 3)
    for ask in (
        lambda: devices.tier_of(device),
        lambda: devices.is_available(device, 1),
        lambda: devices.drops_out(device, 1),
    ):
        with pytest.raises(IndexError, match=f"device {device} is not one of 3"):
            ask()


@pytest.mark.parametrize("name", names_in("devices"))
def test_every_packaged_profile_loads(name):
    devices = load_fleet(name, 100, 0)
    assert len(devices.tiers) >= 3
    assert sum(tier_counts(devices)) == 100


def test_phones_come_with_the_package_and_differ():
    phones = load_fleet("phones", 1000, 0)
    assert tier_counts(phones) == [230, 290, 430, 50]
    speeds = {t.name: t.flops for t in phones.tiers}
    assert speeds["high_end"] > speeds["mid_range"] > speeds["board"] > speeds["entry"]


def test_a_file_of_ones_own_is_read_and_typed(tmp_path):
    second = TIER | {"name": "slow", "share": 3, "co_share": 0.5}
    devices = load_fleet(write_tiers(tmp_path, TIER, second), 8, 7)
    expected = Tier("phone", 1.0, 1e9, 500.0, 20.0, 5.5, 1.0, 0.0, 1.0)
    assert devices.tiers[0] == expected
    assert all(isinstance(getattr(devices.tiers[0], k), float) for k in TIER if k != "name")
    assert (devices.tiers[1].name, devices.tiers[1].co_share) == ("slow", 0.5)
    assert (devices.num_devices, devices.seed, tier_counts(devices)) == (8, 7, [2, 6])


@pytest.mark.parametrize("value", ["0", "-1", ".nan", ".inf", "-.inf"])
@pytest.mark.parametrize("key", ["share", "flops", "memory_mb", "down_mbps", "up_mbps"])
def test_amounts_are_positive_and_finite(tmp_path, key, value):
    path = write_tiers(tmp_path, TIER, TIER | {"name": "b", key: value})
    given_value = float(value.replace(".", ""))
    assert refusal(path) == f"tiers[1].{key}={given_value}: must be above 0 and finite"


@pytest.mark.parametrize("value", ["0", "-0.1", "1.01", ".nan", ".inf"])
@pytest.mark.parametrize("key", ["availability", "co_share"])
def test_some_shares_are_positive(tmp_path, key, value):
    message = refusal(write_tiers(tmp_path, TIER | {key: value}))
    assert message.startswith(f"tiers[0].{key}=")
    assert message.endswith(": must be above 0 and at most 1")


@pytest.mark.parametrize("value", ["-0.1", "1", ".nan", ".inf"])
def test_nobody_is_sure_to_drop_out(tmp_path, value):
    message = refusal(write_tiers(tmp_path, TIER | {"drop_out": value}))
    assert message.startswith("tiers[0].drop_out=")
    assert message.endswith(": must be at least 0 and below 1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flops": "fast"}, "tiers[0].flops=fast: must be a number"),
        ({"flops": "true"}, "tiers[0].flops=true: must be a number"),
        ({"flops": "null"}, "tiers[0].flops=None: must be a number"),
        ({"flops": "[1, 2]"}, "tiers[0].flops=[1, 2]: must be a number"),
        ({"flops": '"${speed}"'}, "tiers[0].flops=${speed}: must be a number"),
        ({"flops": '"${"'}, "tiers[0].flops=${: must be a number"),
        ({"flops": '"???"'}, "tiers[0].flops=???: must be a number"),
        ({"name": "[a]"}, "tiers[0].name=[a]: must be text"),
        ({"name": '" "'}, "tiers[0].name= : must be text"),
        ({"speed": "3"}, f"tiers[0].speed: unknown key; allowed here: {SORTED_KEYS}"),
    ],
)
def test_wrong_types_and_keys_are_named(tmp_path, changes, message):
    assert refusal(write_tiers(tmp_path, TIER | changes)) == message


@pytest.mark.parametrize("key", list(TIER))
def test_every_key_but_co_share_is_needed(tmp_path, key):
    left = {k: v for k, v in TIER.items() if k != key}
    assert refusal(write_tiers(tmp_path, left)) == f"tiers[0].{key}: is missing"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tiers: []", "tiers=[]: must be a list of at least one tier"),
        ("tiers: 3", "tiers=3: must be a list, as in [a, b]"),
        ("{}", "tiers: is missing"),
        ("", "must be a mapping with the keys tiers"),
        ("- 3", "must be a mapping with the keys tiers"),
        ("tires: []", "tires: unknown key; did you mean tiers? allowed here: tiers"),
        ("tiers: [3]", f"tiers[0]=3: must have the keys {KEYS}"),
        ("tiers: [null]", f"tiers[0]=None: must have the keys {KEYS}"),
    ],
)
def test_a_file_holds_a_list_of_tiers(tmp_path, text, message):
    assert refusal(write(tmp_path, text)) == message


def test_two_tiers_of_a_name_are_refused(tmp_path):
    path = write_tiers(tmp_path, TIER, TIER | {"name": "b"}, TIER)
    assert refusal(path) == "tiers[2].name=phone: must differ from tiers[0]'s"


def test_an_unknown_name_is_refused_with_the_known_ones():
    message = refusal("nosuch")
    assert message == f"expected one of {', '.join(names_in('devices'))}, or a path to a .yaml"


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    assert refusal(str(tmp_path / "absent.yaml")) == "No such file or directory"
    (tmp_path / "mine.yaml").write_bytes(b"\xff")
    assert refusal(str(tmp_path / "mine.yaml")) == "is not UTF-8 text"
    assert "line 1" in refusal(write(tmp_path, "tiers: [1"))
