"""What every method is made of: a round is a generator that yields what devices are asked.

The server's half is a :class:`Method`, a device's half a :class:`DeviceHalf`. Between them lies an
engine that knows neither: Flower's (``dccl_flower.flower.rounds``), or a plain loop in this process
(``dccl_flower.in_process``).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

from dccl_flower.codecs import State
from dccl_flower.config import Conf, ConfError
from dccl_flower.device_store import Parcel

if TYPE_CHECKING:
    from dccl_flower.device import Device
    from dccl_flower.experiment import Experiment
    from dccl_flower.fleet.tiers import Workload
    from dccl_flower.models.build import Shape

E = TypeVar("E", bound="Experiment")
GROUP = "dccl_flower.methods"


class OnProgress(Protocol):
    """Is told the phase that an epoch is of, epochs done and in all, and the epoch's mean loss."""

    def __call__(self, phase: str, done: int, total: int, loss: float | None = None) -> None:
        """Take notice."""


@dataclass(frozen=True)
class Numbers:
    """Numbers that come back beside a state: how many, None for any number of them.

    nan may stand in the place of the first ``may_lack`` of them.
    """

    count: int | None = None
    may_lack: int = 0


@dataclass(frozen=True)
class Ask:
    """What one device is asked in one exchange.

    ``turn`` is the method's own frozen dataclass of plain values. ``beside`` are tensors that go
    down with it each time, ``keep`` those that a device is sent once. ``like`` gives names and
    shapes of what comes back where it is not a trained copy of ``state``. ``wants`` tells by name
    of the numbers that come back beside it. ``sends`` and ``brings`` are what the ledger calls the
    state on its way down and what comes up.
    """

    state: State
    turn: Any
    beside: Mapping[str, State] = field(default_factory=dict)
    keep: Mapping[str, Parcel] = field(default_factory=dict)
    like: State | None = None
    wants: Mapping[str, Numbers] = field(default_factory=dict)
    sends: str = "model"
    brings: str = "model"


@dataclass(frozen=True)
class Answer:
    """What a device gives back: a state, the samples behind it, numbers, tensors beside it.

    ``others`` are devices whose answers a worker has merged into this one.
    """

    device: int
    state: State
    count: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    beside: Mapping[str, Tensor] = field(default_factory=dict)
    others: Sequence[int] = ()


Served = Mapping[str, tuple[nn.Module, Tensor | State]]  # a module by name, and a batch for it
Round = Generator[Mapping[int, Ask], Mapping[int, Answer], State]


class Method(Protocol):
    """The server's half of a method."""

    def prepare(self) -> None:
        """Do once what takes long, before the first round."""

    def initial_state(self) -> State:
        """Return the state of record before the first round."""

    def plan(self, num_rounds: int) -> None:
        """Take note of how many rounds there will be; schedules follow it."""

    def workload(self) -> Workload:
        """Return what a turn takes a device, once the method is prepared."""

    def round(self, number: int, state: State, devices: Sequence[int]) -> Round:
        """Ask devices as often as the method needs, and return the next state of record.

        Those that do not answer are missing from the answers.
        """

    def scores(self, state: State) -> Iterator[tuple[str, float]]:
        """Yield what a state is worth, by name; the first score is the one that counts."""

    def references(self) -> Mapping[str, Mapping[str, float]]:
        """Return what the scores are held against, by model and name; it does not change."""

    def state_dict(self, state: State) -> dict[str, State]:
        """Return the models that serve a state, by role."""


@runtime_checkable
class Remembers(Protocol):
    """A method that keeps more than the state of record; without this it is prepared anew.

    What one object gives another of the same configuration takes over, and goes on like the first.
    """

    def prepared(self) -> dict[str, State]:
        """Return what preparation made, as it is before the first round."""

    def adopt(self, prepared: Mapping[str, State]) -> None:
        """Take over what preparation made, in place of making it; ``prepare`` still follows."""

    def memory(self) -> dict[str, State]:
        """Return what is kept from round to round beside the state of record."""

    def remember(self, memory: Mapping[str, State]) -> None:
        """Take over what was kept; called once it is prepared."""


@runtime_checkable
class ScoresOnDevices(Protocol):
    """A method that can have devices score a state on their own samples."""

    def evaluation(self, number: int, state: State, devices: Sequence[int]) -> Mapping[int, Ask]:
        """Return what devices are asked; their answers hold metrics, ``loss`` among them."""


@dataclass(frozen=True)
class DeviceScore:
    """What a device's own samples give a model: a score, nan where there is none, and its weight.

    ``group`` is that of the devices which are like it, by the name that the method gives.
    """

    value: float
    weight: float
    group: int


@runtime_checkable
class ScoresByDevice(Protocol):
    """A method whose first score is a mean over devices; ``grouped_by`` names their groups."""

    grouped_by: str

    def by_device(self) -> Mapping[int, DeviceScore]:
        """Return what the last round's mean is made of."""


class DeviceHalf(Protocol):
    """A device's half of a method; ``turns`` are the kinds of turn that it takes."""

    turns: Sequence[type]

    def state_like(self, turn: Any, device: Device) -> State:
        """Return names and shapes of the state that comes with a turn."""

    def turn(self, ask: Ask, device: Device) -> Answer:
        """Do what is asked, on the device's own samples."""

    def merge(self, turn: Any, answers: Sequence[Answer]) -> Answer:
        """Return one answer, in float64, that counts as these would one by one."""


@dataclass(frozen=True)
class Kinds:
    """What may pass between server and devices in a whole run, by name.

    ``down`` and ``up`` are states and parcels, as the ledger calls them; ``told`` are the tensors
    that answers bring beside a state. Beside these there are only numbers: scores and counts.
    """

    down: Set[str]
    up: Set[str]
    told: Set[str] = frozenset()


def true_ones(**names: bool) -> Set[str]:
    """Return the names of what is true."""
    return frozenset(name for name, is_true in names.items() if is_true)


@dataclass(frozen=True)
class MethodKind(Generic[E]):
    """One row of the methods: its configuration, and how its two halves are made from one.

    ``open`` reads the data of a configuration, and raises ConfError where that is impossible.
    ``check`` raises ConfError where the models do not go with the data or each other, and returns
    what a turn takes a device, before anything is trained; None where devices have no part.
    ``served`` gives what a device that only serves computes for a batch: modules and their inputs.
    ``kinds`` declares all that passes in a run; nothing where devices have no part.
    ``trained`` makes modules for images of a shape (C, H, W) and as many classes from the states
    that a run has left, by the name of what they are for.
    """

    conf: type[Conf]
    open: Callable[[Conf], E]
    server: Callable[[E, OnProgress], Method]
    device: Callable[[E], DeviceHalf]
    check: Callable[[E], Workload | None]
    served: Callable[[E], Served] | None = None
    kinds: Callable[[E], Kinds] | None = None
    trained: Callable[[Any, Shape, int, Mapping[str, State]], Mapping[str, nn.Module]] | None = None


def method_names() -> list[str]:
    """Return the names of all methods that are installed, of other distributions too."""
    return sorted(entry_points(group=GROUP).names)


@cache
def find_method(name: str) -> MethodKind[Any]:
    """Return a method by its name. Raises ConfError for an unknown one."""
    found = entry_points(group=GROUP, name=name)
    if not found:
        known = ", ".join(method_names())
        raise ConfError(f"method.name={name}: unknown method; known are {known}")
    kind: MethodKind[Any] = next(iter(found)).load()
    return kind
