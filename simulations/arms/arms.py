"""``dccl arms``: methods and settings on the same data, steps and seeds; an arm is a row."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from dccl_flower.config import ArmsConf, Conf, ConfError
from dccl_flower.config_loading import dump_conf, with_overrides
from dccl_flower.files import code_digest, content_key
from dccl_flower.simulations.jobs import Job, make_job
from dccl_flower.typed_yaml import read_table

RUN_ARM = "dccl_flower.simulations.arms.comparison:run_arm"
RUN_FOLDER = "run"  # below an arm's job
BACKBONE = "method.backbone"  # by which a method takes the folder of a finished run
SHARED = ("data", "split", "devices")  # sections that a run and what builds on it have in common
Key = tuple[str, int]  # an arm's name and a seed


@dataclass
class Arm:
    """One row of the comparison: what it sets, and the group whose changes it shares.

    ``curve``: its way is drawn over the bytes it takes. ``budget``: no arm may take more steps.
    ``by_default``: it runs where nobody says which arms to run. ``builds_on``: the arm whose
    finished run of the same seed is this one's ``method.backbone``.
    """

    title: str
    set: list[str] = field(default_factory=list)
    group: str | None = None
    curve: bool = False
    budget: bool = False
    by_default: bool = True
    builds_on: str | None = None

    def changed(self, name: str, changes: Mapping[str, list[str]]) -> list[str]:
        """Return what it sets, then what changes by name say of its group, then of itself."""
        names = dict.fromkeys([self.group or name, name])
        return [*self.set, *chain.from_iterable(changes.get(each, []) for each in names)]


@dataclass
class ArmTable:
    """The rows, and the arms between which gaps are measured; ``like`` names rows to start from.

    ``across``: the arm whose first score a plot of all has as a line.
    """

    arms: dict[str, Arm]
    like: str | None = None
    low: str | None = None
    high: str | None = None
    across: str | None = None

    def by_default(self) -> list[str]:
        """Return the names of the arms that run where nobody says which."""
        return [name for name, arm in self.arms.items() if arm.by_default]

    def bases(self, name: str) -> list[str]:
        """Return the arms that one builds on, the nearest first.

        Raises ConfError where one of them is unknown, and where they go in a circle.
        """
        found, base = [name], self.arms[name].builds_on
        while base is not None:
            where = f"arms.{found[-1]}.builds_on={base}"
            if base not in self.arms:
                raise ConfError(f"{where}: no such arm; arms are {', '.join(self.arms)}")
            if base in found:
                raise ConfError(f"{where}: goes in a circle")
            found.append(base)
            base = self.arms[base].builds_on
        return found[1:]

    def check(self) -> None:
        """Raise ConfError where a row, or an end of the gaps, refers to an arm that cannot be."""
        for end, name in zip(("low", "high", "across"), _marked(self), strict=True):
            if name is not None and name not in self.arms:
                raise ConfError(f"{end}={name}: no such arm; arms are {', '.join(self.arms)}")
        for name in self.arms:
            self.bases(name)


def load_arms(name_or_path: str, above: tuple[str, ...] = ()) -> ArmTable:
    """Read rows from conf/arms or a path. Raises ConfError where they are not there or wrong."""
    where = f"arms.rows={name_or_path}"
    if name_or_path in above:
        raise ConfError(f"{where}: like: leads back here")
    table = read_table(ArmTable, where, name_or_path, "arms")
    if table.like is not None:
        base = load_arms(table.like, (*above, name_or_path))
        pairs = zip(_marked(table), _marked(base), strict=True)
        ends = [own or inherited for own, inherited in pairs]
        table = ArmTable(base.arms | table.arms, None, *ends)
    try:
        table.check()
    except ConfError as error:
        raise ConfError(f"{where}: {error}") from error
    return table


def _marked(table: ArmTable) -> tuple[str | None, ...]:
    return table.low, table.high, table.across


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


def arm_conf(table: ArmTable, name: str, conf: Conf, seed: int, over: Sequence[str] = ()) -> Conf:
    """Return the configuration of one arm and seed, with overrides over what the arm sets.

    Raises ConfError where it is impossible.
    """
    changes = conf.arms.changes
    if unknown := set(changes) - set(table.arms) - {arm.group for arm in table.arms.values()}:
        known = ", ".join(table.arms)
        raise ConfError(f"arms.changes.{min(unknown)}: no such arm or group; arms are {known}")
    changed = table.arms[name].changed(name, changes)
    own = with_overrides(conf, [f"seed={seed}", "runtime.reuse=true", *changed, *over])
    return replace(own, arms=ArmsConf())  # one arm's changes are not another's


@dataclass(frozen=True)
class ArmJob:
    """One arm and seed: its configuration, and the job that runs it once it is laid down."""

    arm: str
    conf: Conf
    job: Job
    in_process: bool = False

    @property
    def run(self) -> Path:
        """Where the arm's run lies."""
        return self.job.folder / RUN_FOLDER

    def lay_down(self) -> Job:
        """Write the job's folder."""
        job, facts = self.job, {"arm": self.arm, "in_process": self.in_process}
        make_job(job.title, job.folder, job.key, dump_conf(self.conf), RUN_ARM, **facts)
        return job


def plan_arms(
    table: ArmTable,
    conf: Conf,
    arms: Collection[str],
    seeds: Sequence[int],
    root: Path,
    over: Sequence[str] = (),
    in_process: bool = False,
) -> dict[Key, ArmJob]:
    """Return the jobs of the arms, with ``over`` over what they set, and of those they build on.

    The latter take of ``over`` what says who holds which samples, for both stand on the same. Those
    that build on nothing come first, and of them the first arm: what is prepared once a seed is
    thus ready for the others. Nothing is written. Raises ConfError where an arm is impossible,
    takes more steps than one that sets the budget, or builds on an arm and is given another run.
    """
    _check_backbones(table, arms, over)
    depths = {name: len(table.bases(name)) for arm in arms for name in (arm, *table.bases(arm))}
    in_order = [name for name in table.arms if name in depths]
    first, *others = sorted(in_order, key=depths.__getitem__)
    keys = [(first, seed) for seed in seeds]
    keys += [(name, seed) for seed in seeds for name in others]
    planned: dict[Key, ArmJob] = {}
    for name, seed in sorted(keys, key=lambda key: depths[key[0]]):
        above = table.arms[name].builds_on
        base = planned[above, seed] if above else None
        backbone = [f"{BACKBONE}={base.run}"] if base else []
        own = over if name in arms else [each for each in over if _section(each) in SHARED]
        found = arm_conf(table, name, conf, seed, [*own, *backbone])
        title = ", ".join([name, *own, f"seed {seed}"])
        key = content_key(code_digest(), name, dump_conf(found), *(["here"] if in_process else []))
        folder = root / "jobs" / f"{name}-seed{seed}-{key}"
        job = Job(title, folder, key, base.job if base else None)
        planned[name, seed] = ArmJob(name, found, job, in_process)
    _check_steps(table, planned.values())
    return planned


def _section(override: str) -> str:
    return override.partition("=")[0].split(".")[0]


def _check_backbones(table: ArmTable, arms: Collection[str], over: Sequence[str]) -> None:
    given = next((each for each in over if each.partition("=")[0] == BACKBONE), None)
    for name in arms:
        above = table.arms[name].builds_on
        if given is not None and above is not None:
            allowed = "expected only where an arm builds on none"
            raise ConfError(f"arm {name}: {given}: it builds on the run of {above}; {allowed}")


def _check_steps(table: ArmTable, planned: Collection[ArmJob]) -> None:
    budgets = [each.conf.rounds.steps for each in planned if table.arms[each.arm].budget]
    for each in planned:
        if budgets and each.conf.rounds.steps > min(budgets):
            raise ConfError(
                f"arm {each.arm}: {each.conf.rounds.steps} steps are more than the {min(budgets)} "
                "of the arms that set the budget; set rounds.count or rounds.local_steps in "
                "arms.changes"
            )
