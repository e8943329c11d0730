"""Device profiles: tiers of devices by speed, memory and network, and which device is of which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from dccl_flower.config import Conf, ConfError, bound
from dccl_flower.seeds import numpy_generator
from dccl_flower.typed_yaml import read_table


@dataclass(frozen=True)
class Tier:
    """One kind of device.

    ``share`` of the devices, relative to the sum over the tiers; ``flops`` sustained in training,
    a multiply-add as two; ``memory_mb`` (10^6 bytes) that training may take; ``down_mbps`` and
    ``up_mbps`` (10^6 bits a second). A device is there in a round with probability
    ``availability`` and goes in mid-round with probability ``drop_out``. ``co_share`` is the share
    of the co-submodel's width that it trains.
    """

    name: str
    share: float = bound(above=0)
    flops: float = bound(above=0)
    memory_mb: float = bound(above=0)
    down_mbps: float = bound(above=0)
    up_mbps: float = bound(above=0)
    availability: float = bound(above=0, at_most=1)
    drop_out: float = bound(at_least=0, below=1)
    co_share: float = bound(1.0, above=0, at_most=1)


@dataclass(frozen=True)
class _Profile:
    tiers: list[Tier]


@dataclass(frozen=True)
class Fleet:
    """Devices ``0 .. num_devices - 1``, each of a tier, as seed and shares have it.

    No answer depends on which other devices or rounds are asked for.
    """

    tiers: tuple[Tier, ...]
    num_devices: int
    seed: int

    def tier_of(self, device: int) -> Tier:
        """Return the device's tier. Raises IndexError for a device that is not of the fleet."""
        return self.tiers[self._tier_numbers[self._known(device)]]

    def is_available(self, device: int, server_round: int) -> bool:
        """Tell whether the device is there in a round. Raises IndexError as ``tier_of`` does."""
        draw = self._draw("availability", device, server_round)
        return draw < self.tier_of(device).availability

    def drops_out(self, device: int, server_round: int) -> float | None:
        """Return the share of its turn, from 0 to 1, after which the device is gone, or None.

        Raises IndexError as ``tier_of`` does.
        """
        draw = self._draw("drop_out", device, server_round)
        chance = self.tier_of(device).drop_out
        # A uniform draw that lies below the chance is uniform below it: it tells when, too.
        return draw / chance if draw < chance else None

    @cached_property
    def _tier_numbers(self) -> np.ndarray:
        counts = _largest_remainders([tier.share for tier in self.tiers], self.num_devices)
        numbers = np.repeat(np.arange(len(self.tiers)), counts)
        return numpy_generator(self.seed, "tiers").permutation(numbers)

    def _draw(self, purpose: str, device: int, server_round: int) -> float:
        draws = _draws(self.seed, purpose, server_round, self.num_devices)
        return float(draws[self._known(device)])

    def _known(self, device: int) -> int:
        if not 0 <= device < self.num_devices:
            raise IndexError(f"device {device} is not one of {self.num_devices}")
        return device


def co_shares(fleet: Fleet | None) -> set[float]:
    """Return the shares of a model's width that devices train."""
    return {1.0} if fleet is None else {tier.co_share for tier in fleet.tiers}


def refuse_widths(conf: Conf) -> None:
    """Raise ConfError for tiers that train a part of the width, where a method has but one."""
    fleet = fleet_of(conf)
    for place, tier in enumerate(fleet.tiers if fleet else ()):
        if tier.co_share != 1:
            given = f"tiers[{place}].co_share={tier.co_share}"
            raise ConfError(
                f"devices.profiles={conf.devices.profiles}: {given}: must be 1 with "
                f"method.name={conf.method.name}, which trains one width"
            )


def load_fleet(name_or_path: str, num_devices: int, seed: int) -> Fleet:
    """Read tiers from a packaged ``conf/devices`` file or a path and deal devices out to them.

    Raises ConfError for an unknown name, a file that cannot be read, an unknown key, a wrong type
    or a value out of range.
    """
    where = f"devices.profiles={name_or_path}"
    tiers = read_table(_Profile, where, name_or_path, "devices").tiers
    if not tiers:
        raise ConfError(f"{where}: tiers=[]: must be a list of at least one tier")
    names = [tier.name for tier in tiers]
    for i, name in enumerate(names):
        if (first := names.index(name)) < i:
            raise ConfError(f"{where}: tiers[{i}].name={name}: must differ from tiers[{first}]'s")
    return Fleet(tuple(tiers), num_devices, seed)


def fleet_of(conf: Conf) -> Fleet | None:
    """Return the fleet of a configuration, None where it has no profiles; see load_fleet."""
    devices = conf.devices
    return load_fleet(devices.profiles, devices.count, conf.seed) if devices.profiles else None


def _largest_remainders(shares: Sequence[float], total: int) -> np.ndarray:
    """Round ``total`` times each share so that the sum is ``total`` (Hamilton's method)."""
    relative = np.asarray(shares) / max(shares)
    quotas = total * relative / relative.sum()
    counts = np.floor(quotas).astype(int)
    by_remainder = np.argsort(counts - quotas, kind="stable")
    counts[by_remainder[: total - counts.sum()]] += 1
    return counts


@lru_cache(maxsize=4)
def _draws(seed: int, purpose: str, server_round: int, count: int) -> np.ndarray:
    """Return a round's uniform draws, one a device: a generator a device would take seconds."""
    draws = numpy_generator(seed, purpose, server_round).random(count)
    draws.flags.writeable = False
    return draws
