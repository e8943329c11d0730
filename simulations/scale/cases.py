"""Which measurements ``dccl scale`` takes, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dccl_flower.config import Conf, ConfError
from dccl_flower.config_loading import load_conf

BARE, PFL, FLOWER, DCCL = "bare", "pfl", "flower", "dccl"
# By system and control; the mimic is named where it is the exception.
TITLES = {
    (BARE, "none"): "bare torch loop",
    (BARE, "mimic"): "bare torch loop with mimic",
    (PFL, "none"): "pfl-research",
    (FLOWER, "none"): "Flower FedAvg",
    (DCCL, "mimic"): "DC-CCL",
    (DCCL, "none"): "DC-CCL without mimic",
}
SKIPPABLE = (PFL, FLOWER, "reference", "population")
DEFAULT_COHORT = 50
MAX_FLOWER_NODES = 1000  # of stock Flower, where a device is a node
MAX_NODES = 100
# Among so many times more devices than a cohort takes, hardly one comes twice.
FRESH_COHORTS = 100


@dataclass(frozen=True)
class Settings:
    """What the flags of ``dccl scale`` say; without a cohort it is 50, or all devices if fewer."""

    devices: tuple[int, ...] = (10, 100, 1000, 10_000, 100_000)
    workers: tuple[int, ...] = (1, 2)
    cohort: int | None = None
    rounds: int = 5
    steps: int = 5
    skip: frozenset[str] = frozenset()

    @property
    def reference(self) -> int:
        """The cohort of the comparisons, and in most of them also the population."""
        return self.cohort or DEFAULT_COHORT


@dataclass(frozen=True)
class Case:
    """One measurement: a system, its population and cohort, and how many workers train."""

    system: str
    control: str
    devices: int
    cohort: int
    workers: int

    @property
    def name(self) -> str:
        """The case as the name of a folder."""
        return f"{self.system}-{self.control}-{self.devices}-devices-{self.workers}-workers"

    @property
    def title(self) -> str:
        """The case in words."""
        system = TITLES[self.system, self.control]
        return f"{system}, {self.devices:,} devices, {in_words(self.workers)}"


def in_words(workers: int) -> str:
    """Return how many workers train."""
    return "1 worker" if workers == 1 else f"{workers} workers"


def parse_counts(flag: str, text: str) -> tuple[int, ...]:
    """Return the numbers of a comma-separated list in ascending order, each once.

    Raises ConfError for one that is not a positive integer.
    """
    parts = _parts(text)
    for part in parts:
        if not (part.isascii() and part.isdecimal() and int(part) > 0):
            raise ConfError(f"{flag} {part!r}: expected integers from 1 up, separated by commas")
    return tuple(sorted({int(part) for part in parts}))


def parse_skip(text: str) -> frozenset[str]:
    """Return which parts to leave out. Raises ConfError for an unknown one."""
    parts = _parts(text) if text else []
    for part in parts:
        if part not in SKIPPABLE:
            raise ConfError(f"--skip {part!r}: unknown; allowed are {', '.join(SKIPPABLE)}")
    return frozenset(parts)


def cases(settings: Settings) -> list[Case]:
    """Return the measurements in order, the cheap ones that all others are held against first.

    Raises ConfError where a cohort that was asked for is larger than a population.
    """
    for count in settings.devices:
        if settings.cohort is not None and settings.cohort > count:
            raise ConfError(
                f"--cohort {settings.cohort}: must be at most the {count} devices of "
                f"--devices {count}"
            )
    reference = settings.reference
    found = [Case(BARE, "none", reference, reference, 1)]
    if PFL not in settings.skip:
        found.append(Case(PFL, "none", reference, reference, 1))
    if FLOWER not in settings.skip and reference <= MAX_FLOWER_NODES:
        counts = sorted({min(count, MAX_FLOWER_NODES) for count in settings.devices})
        found.append(Case(FLOWER, "none", reference, reference, settings.workers[0]))
        found += _by_population(FLOWER, "none", counts, settings)
    if "reference" not in settings.skip:
        found += [
            Case(DCCL, control, count, reference, settings.workers[0])
            for count in (reference, FRESH_COHORTS * reference)
            for control in ("mimic", "none")
        ]
    if "population" not in settings.skip:
        found += _by_population(DCCL, "mimic", settings.devices, settings)
    return list(dict.fromkeys(found))


def case_conf(case: Case, conf_name: str, overrides: Sequence[str], settings: Settings) -> Conf:
    """Return the configuration of one measurement. Raises ConfError where it is impossible."""
    nodes = case.devices  # of stock Flower, where a device is a node
    if case.system != FLOWER:
        nodes = min(load_conf(conf_name, overrides).runtime.nodes or MAX_NODES, nodes)
    changes = {
        "devices.count": case.devices,
        "devices.per_round": case.cohort,
        "control": case.control,
        "rounds.count": settings.rounds,
        "rounds.local_steps": settings.steps,
        "runtime.workers": case.workers,
        "runtime.nodes": nodes,
        "runtime.reuse": "true",
    }
    return load_conf(conf_name, [*overrides, *(f"{key}={to}" for key, to in changes.items())])


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _by_population(
    system: str, control: str, counts: Sequence[int], settings: Settings
) -> list[Case]:
    return [
        Case(system, control, count, min(settings.reference, count), workers)
        for workers in settings.workers
        for count in counts
    ]
