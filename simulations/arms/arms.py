"""``dccl arms``: methods and settings on the same data, steps and seeds; an arm is a row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dccl_flower.config import ArmsConf, Conf, ConfError
from dccl_flower.config_loading import dump_conf, load_conf, with_overrides
from dccl_flower.files import code_digest, content_key
from dccl_flower.simulations.jobs import Job, make_job
from dccl_flower.typed_yaml import read_table

RUN_ARM = "dccl_flower.simulations.arms.job:run_arm"


@dataclass
class Arm:
    """One row of the comparison: what it sets, and the group whose changes it shares.

    ``curve``: its way is drawn over the bytes it takes. ``budget``: no arm may take more steps.
    """

    title: str
    set: list[str] = field(default_factory=list)
    group: str | None = None
    curve: bool = False
    budget: bool = False


@dataclass
class ArmTable:
    """The rows, and the arms between which gaps are measured; ``like`` names rows to start from."""

    arms: dict[str, Arm]
    like: str | None = None
    low: str | None = None
    high: str | None = None


def load_arms(name_or_path: str) -> ArmTable:
    """Read rows from conf/arms or a path. Raises ConfError where they are not there or wrong."""
    own = read_table(ArmTable, f"arms.rows={name_or_path}", name_or_path, "arms")
    if own.like is None:
        return own
    base = load_arms(own.like)
    low, high = own.low or base.low, own.high or base.high
    return ArmTable(base.arms | own.arms, None, low, high)


def parse_arms(text: str | None, known: Iterable[str]) -> list[str]:
    """Return the arms named in a comma-separated list, all where there is none.

    Raises ConfError for an unknown one.
    """
    known = list(known)
    names = known if text is None else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise ConfError(f"--arms {name!r}: unknown arm; allowed are {', '.join(known)}")
    return list(dict.fromkeys(names))


def parse_seeds(text: str) -> list[int]:
    """Return the seeds of a comma-separated list. Raises ConfError for one that is none."""
    seeds = []
    for part in text.split(","):
        if not part.strip().isdecimal():
            raise ConfError(f"--seeds {part.strip()!r}: expected integers from 0 up, as in 0,1,2")
        seeds.append(int(part))
    return list(dict.fromkeys(seeds))


def arm_conf(
    table: ArmTable, name: str, conf_name: str, overrides: Sequence[str], seed: int
) -> Conf:
    """Return the configuration of one arm and seed. Raises ConfError where it is impossible."""
    base = load_conf(conf_name, [*overrides, f"seed={seed}", "runtime.reuse=true"])
    arm, changes = table.arms[name], base.arms.changes
    if unknown := set(changes) - set(table.arms) - {each.group for each in table.arms.values()}:
        known = ", ".join(table.arms)
        raise ConfError(f"arms.changes.{min(unknown)}: no such arm or group; arms are {known}")
    of_group = changes.get(arm.group or "", [])
    own = changes.get(name, []) if name != arm.group else []
    conf = with_overrides(base, [*arm.set, *of_group, *own])
    return replace(conf, arms=ArmsConf())  # one arm's changes are not another's


def arm_jobs(
    table: ArmTable,
    conf_name: str,
    overrides: Sequence[str],
    arms: Sequence[str],
    seeds: Sequence[int],
    root: Path,
) -> dict[tuple[str, int], Job]:
    """Write every arm's configuration below ``root`` and return the jobs, the first arm's first.

    What is prepared once a seed is thus ready for the others. Raises ConfError where an arm is
    impossible, or takes more steps than one that sets the budget.
    """
    first, *others = sorted(arms, key=list(table.arms).index)
    keys = [(first, seed) for seed in seeds]
    keys += [(name, seed) for seed in seeds for name in others]
    confs = {key: arm_conf(table, key[0], conf_name, overrides, key[1]) for key in keys}
    _check_steps(table, confs)
    return {key: _job(*key, conf, root / "jobs") for key, conf in confs.items()}


def steps_of(conf: Conf) -> int:
    """Return how many steps each side trains."""
    return conf.rounds.count * conf.rounds.local_steps


def _job(name: str, seed: int, conf: Conf, root: Path) -> Job:
    text = dump_conf(conf)
    key = content_key(code_digest(), name, text)
    folder = root / f"{name}-seed{seed}-{key}"
    return make_job(f"{name}, seed {seed}", folder, key, text, RUN_ARM, arm=name)


def _check_steps(table: ArmTable, confs: Mapping[tuple[str, int], Conf]) -> None:
    budgets = [steps_of(conf) for (name, _), conf in confs.items() if table.arms[name].budget]
    for (name, _), conf in confs.items():
        if budgets and steps_of(conf) > min(budgets):
            raise ConfError(
                f"arm {name}: {steps_of(conf)} steps are more than the {min(budgets)} of the arms "
                "that set the budget; set rounds.count or rounds.local_steps in arms.changes"
            )
