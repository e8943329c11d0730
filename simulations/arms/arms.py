"""``dccl arms``: methods and settings on the same data, steps and seeds; an arm is a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from dccl_flower.config import ArmsConf, Conf, ConfError
from dccl_flower.config_loading import dump_conf, with_overrides
from dccl_flower.files import code_digest, content_key
from dccl_flower.simulations.jobs import Job, make_job
from dccl_flower.typed_yaml import read_table

RUN_ARM = "dccl_flower.simulations.arms.comparison:run_arm"
Key = tuple[str, int]  # an arm's name and a seed


@dataclass
class Arm:
    """One row of the comparison: what it sets, and the group whose changes it shares.

    ``curve``: its way is drawn over the bytes it takes. ``budget``: no arm may take more steps.
    ``by_default``: it runs where nobody says which arms to run.
    """

    title: str
    set: list[str] = field(default_factory=list)
    group: str | None = None
    curve: bool = False
    budget: bool = False
    by_default: bool = True

    def changed(self, name: str, changes: Mapping[str, list[str]]) -> list[str]:
        """Return what it sets, then what changes by name say of its group, then of itself."""
        names = dict.fromkeys([self.group or name, name])
        return [*self.set, *chain.from_iterable(changes.get(each, []) for each in names)]


@dataclass
class ArmTable:
    """The rows, and the arms between which gaps are measured; ``like`` names rows to start from."""

    arms: dict[str, Arm]
    like: str | None = None
    low: str | None = None
    high: str | None = None

    def by_default(self) -> list[str]:
        """Return the names of the arms that run where nobody says which."""
        return [name for name, arm in self.arms.items() if arm.by_default]


def load_arms(name_or_path: str, above: tuple[str, ...] = ()) -> ArmTable:
    """Read rows from conf/arms or a path. Raises ConfError where they are not there or wrong."""
    where = f"arms.rows={name_or_path}"
    if name_or_path in above:
        raise ConfError(f"{where}: like: leads back here")
    own = read_table(ArmTable, where, name_or_path, "arms")
    if own.like is None:
        return own
    base = load_arms(own.like, (*above, name_or_path))
    return ArmTable(base.arms | own.arms, None, own.low or base.low, own.high or base.high)


def parse_arms(text: str | None, table: ArmTable) -> list[str]:
    """Return the arms named in a comma-separated list; without one, those that run by default.

    Raises ConfError for an unknown one, and where there is none.
    """
    names = table.by_default() if text is None else [name.strip() for name in text.split(",")]
    allowed = ", ".join(table.arms)
    if not names:
        raise ConfError(f"--arms: none runs by default; allowed are {allowed or 'none'}")
    for name in names:
        if name not in table.arms:
            raise ConfError(f"--arms {name!r}: unknown arm; allowed are {allowed}")
    return list(dict.fromkeys(names))


def parse_seeds(text: str) -> list[int]:
    """Return the seeds of a comma-separated list. Raises ConfError for one that is none."""
    seeds = []
    for part in text.split(","):
        if not part.strip().isdecimal():
            raise ConfError(f"--seeds {part.strip()!r}: expected integers from 0 up, as in 0,1,2")
        seeds.append(int(part))
    return list(dict.fromkeys(seeds))


def arm_conf(table: ArmTable, name: str, conf: Conf, seed: int) -> Conf:
    """Return the configuration of one arm and seed. Raises ConfError where it is impossible."""
    changes = conf.arms.changes
    if unknown := set(changes) - set(table.arms) - {arm.group for arm in table.arms.values()}:
        known = ", ".join(table.arms)
        raise ConfError(f"arms.changes.{min(unknown)}: no such arm or group; arms are {known}")
    changed = table.arms[name].changed(name, changes)
    own = with_overrides(conf, [f"seed={seed}", "runtime.reuse=true", *changed])
    return replace(own, arms=ArmsConf())  # one arm's changes are not another's


def arm_jobs(
    table: ArmTable, conf: Conf, arms: Sequence[str], seeds: Sequence[int], root: Path
) -> dict[Key, Job]:
    """Write every arm's configuration below ``root`` and return the jobs, the first arm's first.

    What is prepared once a seed is thus ready for the others. Raises ConfError where an arm is
    impossible, or takes more steps than one that sets the budget.
    """
    first, *others = sorted(arms, key=list(table.arms).index)
    keys = [(first, seed) for seed in seeds]
    keys += [(name, seed) for seed in seeds for name in others]
    confs = {key: arm_conf(table, key[0], conf, key[1]) for key in keys}
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


def _check_steps(table: ArmTable, confs: Mapping[Key, Conf]) -> None:
    budgets = [steps_of(conf) for (name, _), conf in confs.items() if table.arms[name].budget]
    for (name, _), conf in confs.items():
        if budgets and steps_of(conf) > min(budgets):
            raise ConfError(
                f"arm {name}: {steps_of(conf)} steps are more than the {min(budgets)} of the arms "
                "that set the budget; set rounds.count or rounds.local_steps in arms.changes"
            )
