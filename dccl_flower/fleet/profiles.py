"""Device profiles: tiers of devices by speed, memory and network, and which device is of which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from importlib import resources
from importlib.resources.abc import Traversable
from math import inf
from pathlib import Path
from typing import Any, cast

import numpy as np
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from dccl_flower.config import ConfError
from dccl_flower.seeds import numpy_generator

_POSITIVE = ("share", "flops", "memory_mb", "down_mbps", "up_mbps")
_POSITIVE_SHARES = ("availability", "co_share")


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
    share: float
    flops: float
    memory_mb: float
    down_mbps: float
    up_mbps: float
    availability: float
    drop_out: float
    co_share: float = 1.0


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


def load_fleet(name_or_path: str, num_devices: int, seed: int) -> Fleet:
    """Read tiers from a packaged ``conf/devices`` file or a path and deal devices out to them.

    Raises ConfError for an unknown name, a file that cannot be read, an unknown key, a wrong type
    or a value out of range.
    """
    where = f"devices.profiles={name_or_path}"
    given = _read(where, name_or_path)
    if not isinstance(given, dict):
        raise ConfError(f"{where}: must be a mapping with the key tiers")
    if unknown := [key for key in given if key != "tiers"]:
        raise ConfError(f"{where}: {unknown[0]}: unknown key; allowed here: tiers")
    entries = given.get("tiers")
    if not isinstance(entries, list) or not entries:
        raise ConfError(f"{where}: tiers={_line(entries)}: must be a list of at least one tier")
    tiers = tuple(_tier(f"{where}: tiers[{i}]", entry) for i, entry in enumerate(entries))
    names = [tier.name for tier in tiers]
    for i, name in enumerate(names):
        if name in names[:i]:
            first = names.index(name)
            raise ConfError(f"{where}: tiers[{i}].name={name}: must differ from tiers[{first}]'s")
    return Fleet(tiers, num_devices, seed)


def profile_names() -> list[str]:
    """Return the names of the device profiles that come with the package."""
    files = _packaged().iterdir()
    return sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml"))


def _packaged() -> Traversable:
    return resources.files("dccl_flower.conf").joinpath("devices")


def _read(where: str, name_or_path: str) -> Any:
    try:
        if name_or_path in profile_names():
            text = _packaged().joinpath(f"{name_or_path}.yaml").read_text(encoding="utf-8")
        elif name_or_path.endswith((".yaml", ".yml")):
            text = Path(name_or_path).read_text(encoding="utf-8")
        else:
            allowed = ", ".join(profile_names())
            raise ConfError(f"{where}: must be one of {allowed}, or a path to a .yaml")
        return yaml.safe_load(text)
    except OSError as error:
        raise ConfError(f"{where}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfError(f"{where}: is not UTF-8 text") from error
    except yaml.YAMLError as error:
        raise ConfError(f"{where}: {_line(error)}") from error


def _tier(place: str, given: Any) -> Tier:
    if not isinstance(given, dict):
        keys = ", ".join(f.name for f in fields(Tier))
        raise ConfError(f"{place}={_line(given)}: must have the keys {keys}")
    try:
        typed = OmegaConf.merge(OmegaConf.structured(Tier), given)
        tier = cast(Tier, OmegaConf.to_object(typed))
    except OmegaConfBaseException as error:
        raise ConfError(f"{place}.{_complaint(given, error)}") from error
    if wrong := _out_of_range(tier):
        key, allowed = wrong[0]
        raise ConfError(f"{place}.{key}={getattr(tier, key)}: must be {allowed}")
    return tier


def _complaint(given: dict[str, Any], error: OmegaConfBaseException) -> str:
    key = error.full_key
    if isinstance(error, ConfigKeyError):
        return f"{key}: unknown key; allowed here: {', '.join(f.name for f in fields(Tier))}"
    if isinstance(error, MissingMandatoryValue):
        return f"{key}: is missing"
    return f"{key}={_line(given.get(key or ''))}: must be {'text' if key == 'name' else 'a number'}"


def _out_of_range(tier: Tier) -> list[tuple[str, str]]:
    """Return the keys whose values are refused, each with what is allowed."""
    wrong = []
    if not tier.name.strip():
        wrong.append(("name", "text"))
    wrong += [(k, "above 0 and finite") for k in _POSITIVE if not 0 < getattr(tier, k) < inf]
    wrong += [
        (k, "above 0 and at most 1") for k in _POSITIVE_SHARES if not 0 < getattr(tier, k) <= 1
    ]
    if not 0 <= tier.drop_out < 1:
        wrong.append(("drop_out", "at least 0 and below 1"))
    return wrong


def _line(value: object) -> str:
    return " ".join(str(value).split())


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
