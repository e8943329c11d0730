"""What a search tries, read from conf/search, and how changes go together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from dccl_flower.config import ConfError
from dccl_flower.typed_yaml import names_in, read_table

BOUND, FEDERATED = "bound", "federated"
Changes = dict[str, list[str]]


@dataclass(frozen=True)
class Candidate:
    """Changes of the base by name, and the stage that thought of it."""

    stage: str
    changes: tuple[str, ...]
    overrides: tuple[str, ...]
    kind: str = FEDERATED

    @property
    def name(self) -> str:
        """The changes in words."""
        return " + ".join(self.changes) or "base"


@dataclass
class Space:
    """The base, changes of it as overrides by name, and settings that bound what can be reached.

    ``samples_down`` are changes that send the cloud's samples to devices, which not everybody may.
    In ``bounds``, ``{twice}`` and ``{half}`` stand for such multiples of the configuration's rate.
    """

    base: list[str]
    changes: Changes
    samples_down: Changes = field(default_factory=dict)
    bounds: Changes = field(default_factory=dict)

    @cached_property
    def pool(self) -> Changes:
        """All changes."""
        return self.changes | self.samples_down

    def grown(
        self, stage: str, bases: Sequence[tuple[str, ...]], names: Iterable[str]
    ) -> list[Candidate]:
        """Return each base with each change that adds to it, every combination once."""
        combinations = {
            frozenset({*base, name}): (*base, name)
            for base in bases
            for name in names
            if self.adds(name, base)
        }
        return [self.candidate(stage, changes) for changes in combinations.values()]

    def unions(self, stage: str, best: Sequence[Candidate]) -> list[Candidate]:
        """Return the first candidate joined with the second, the third, and both."""
        grown: dict[frozenset[str], Candidate] = {}
        for others in (best[1:2], best[2:3], best[1:3]):
            named = (change for each in (best[0], *others) for change in each.changes)
            joined = self.candidate(stage, tuple(dict.fromkeys(named)))
            if not self._clash(joined.changes):
                grown.setdefault(frozenset(joined.overrides), joined)
        grown.pop(frozenset(best[0].overrides), None)
        return list(grown.values())

    def candidate(self, stage: str, changes: tuple[str, ...]) -> Candidate:
        """Return a candidate of changes by name."""
        overrides = tuple(each for change in changes for each in self.pool[change])
        return Candidate(stage, changes, overrides)

    def adds(self, name: str, base: Sequence[str]) -> bool:
        """Tell whether a change goes with others, adds to them, and has none of them in it."""
        own = set(self.pool[name])
        others = [set(self.pool[change]) for change in base]
        has_more = not own <= set().union(*others)
        return has_more and not any(e <= own for e in others) and not self._clash([*base, name])

    def _clash(self, changes: Sequence[str]) -> bool:
        """Tell whether two changes set the same key to different values."""
        settings = {tuple(each.split("=")) for change in changes for each in self.pool[change]}
        return len(settings) > len({key for key, _ in settings})


def load_space(method: str) -> Space:
    """Read what is tried for a method. Raises ConfError where nothing is known of it."""
    if method not in names_in("search"):
        raise ConfError(f"method.name={method}: there is no conf/search/{method}.yaml to search by")
    return read_table(Space, f"search {method}", method, "search")
