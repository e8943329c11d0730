"""``dccl sweep``: one key's values, over arms and seeds; a value is an override of an arm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dccl_flower.config import ArmsConf, Conf, ConfError
from dccl_flower.simulations.arms.arms import Arm, ArmJob, ArmTable, plan_arms

SweptKey = tuple[str, str, int]  # a value, an arm's name and a seed
OPENING, CLOSING = "[{(", ")}]"


@dataclass(frozen=True)
class Sweep:
    """The values of a key, the arms that take them, and the seeds."""

    key: str
    values: Sequence[str]
    arms: Sequence[str]
    seeds: Sequence[int]


def parse_swept(text: str, overrides: Sequence[str]) -> tuple[str, list[str]]:
    """Return the key and the values of ``KEY=V1,V2,...``, each value once.

    An empty value is null, as in any override. Raises ConfError for text without a key or values,
    for a key that other overrides set too, and for one whose values would change nothing.
    """
    key, equals, values = text.partition("=")
    if not key or not equals:
        raise ConfError(f"sweep {text!r}: expected key=value,value,...")
    if not values:
        raise ConfError(f"sweep {text!r}: expected values, separated by commas")
    if key == "seed":
        raise ConfError("sweep seed: has an option of its own, --seeds")
    if key.split(".")[0] == "arms":
        raise ConfError(f"sweep {key}: sweep what an arm changes, and name the arm with --arms")
    if any(each.partition("=")[0] == key for each in overrides):
        raise ConfError(f"sweep {key}: is among the overrides too; expected one of the two")
    return key, list(dict.fromkeys(split_values(values)))


def split_values(text: str) -> list[str]:
    """Return the parts between commas that stand outside all brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth = max(0, depth + (letter in OPENING) - (letter in CLOSING))
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def only_itself(conf: Conf, name: str) -> tuple[ArmTable, Conf]:
    """Return a configuration as the only arm, and without what it changes of others."""
    return ArmTable({name: Arm(conf.name)}), replace(conf, arms=ArmsConf())


def plan_sweep(table: ArmTable, conf: Conf, sweep: Sweep, root: Path) -> dict[SweptKey, ArmJob]:
    """Return the jobs of all values.

    What only another builds on takes values of sections that both share, or else none, and then its
    job is the same under each. Nothing is written. Raises ConfError where an
    arm with one of the values is impossible.
    """
    planned: dict[SweptKey, ArmJob] = {}
    for value in sweep.values:
        over = [f"{sweep.key}={value}"]
        of_value = plan_arms(table, conf, sweep.arms, sweep.seeds, root, over)
        planned |= {(value, *key): each for key, each in of_value.items()}
    return planned
