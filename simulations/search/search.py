"""``dccl search``: which changes of the published rule close the gap, found without the test set.

First the central candidates and the headline settings that the configuration already has, then
successive halving (Jamieson and Talwalkar, arXiv 1502.07943) over a growing combination: every
change alone, each with one of the two that matter most, the best of those with both, and the best
of these together, with and without exemplars. In the first two stages all candidates run a third
of the rounds, and the best fifth of them then runs all. Scores are accuracies on training images
that neither side holds: pooled validation data, which an offline search may use and a federation
may not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dccl_flower.config import Conf, ConfError
from dccl_flower.config_loading import dump_conf, load_conf
from dccl_flower.files import content_key
from dccl_flower.simulations.arms.arms import HEADLINES
from dccl_flower.simulations.jobs import Job, JobRunner, make_job
from dccl_flower.simulations.prepared import ALL_CODE, code_digest
from dccl_flower.simulations.search.candidates import BASE, CENTRAL, EXEMPLARS, POOL

RUN_CANDIDATE = "dccl_flower.simulations.search.job:run_candidate"
SHARE, FINALISTS = 3, 5
PARTNERS, TOGETHER = 4, 3


@dataclass(frozen=True)
class Candidate:
    """Changes of the base by name, and the stage that thought of it."""

    stage: str
    changes: tuple[str, ...]
    overrides: tuple[str, ...]
    kind: str = "federated"

    @property
    def name(self) -> str:
        """The changes in words."""
        return " + ".join(self.changes) or "base"

    @property
    def is_strict(self) -> bool:
        """Whether no cloud sample goes down."""
        return not any(change in EXEMPLARS for change in self.changes)


@dataclass
class Search:
    """A search over one configuration; ``scored`` grows as candidates end."""

    conf_name: str
    overrides: list[str]
    folder: Path
    runner: JobRunner
    scored: list[dict[str, Any]] = field(default_factory=list)

    def run(self) -> None:
        """Go through the stages."""
        self._score([*self._centrals(), *self._headlines()], short=False)
        singles = [Candidate("alone", (), ()), *_grown("alone", [()], POOL)]
        ranked = self._halve(singles)
        first, second = two_that_matter(ranked)
        pairs = self._halve(_grown("with one", [(first,), (second,)], POOL))
        for is_strict in (True, False):
            partners = best_partners(pairs, (first, second), is_strict)
            triples = _grown("with both", [(first, second)], partners)
            kept = self._score(triples, short=False)[:TOGETHER]
            if kept:
                self._score(_unions("together", kept), short=False)

    def _centrals(self) -> list[Candidate]:
        lr = load_conf(self.conf_name, self.overrides).rounds.lr
        return [
            Candidate(
                "central",
                (name,),
                tuple(k.format(twice=2 * lr, half=lr / 2) for k in keys),
                "central",
            )
            for name, keys in CENTRAL.items()
        ]

    def _headlines(self) -> list[Candidate]:
        """Return what the configuration has; raises ConfError where a setting cannot run."""
        arms = load_conf(self.conf_name, self.overrides).arms
        settings = {name: tuple(getattr(arms, name)) for name in HEADLINES}
        found = [Candidate("headline", (name,), keys) for name, keys in settings.items() if keys]
        for candidate in found:
            self._conf(candidate, short=False)
        return found

    def _halve(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Return the candidates, best first: those with all rounds before those with a third."""
        by_short = self._score(candidates, short=True)
        finalists = by_short[: -(-len(by_short) // FINALISTS)]
        return self._score(finalists, short=False) + by_short[len(finalists) :]

    def _score(self, candidates: Sequence[Candidate], short: bool) -> list[Candidate]:
        """Run candidates and return those that did not fail, best first."""
        possible = [candidate for candidate in candidates if self._is_possible(candidate)]
        jobs = [self._job(candidate, short) for candidate in possible]
        scored = []
        for candidate, outcome in zip(possible, self.runner.run(jobs), strict=True):
            row = {**asdict(candidate), "name": candidate.name, "all_rounds": not short}
            self.scored.append({**row, **(outcome.result or {"error": outcome.error})})
            if outcome.result is not None:
                scored.append((outcome.result["accuracy"], candidate))
        return [candidate for _, candidate in sorted(scored, key=lambda pair: -pair[0])]

    def _is_possible(self, candidate: Candidate) -> bool:
        """Tell whether the changes go together: not every start goes with every norm, say."""
        try:
            self._conf(candidate, short=False)
        except ConfError:
            return False
        return True

    def _job(self, candidate: Candidate, short: bool) -> Job:
        conf = self._conf(candidate, short)
        text = dump_conf(conf)
        key = content_key(code_digest(*ALL_CODE), candidate.kind, text)
        folder = self.folder / "candidates" / key
        title = f"{candidate.stage}: {candidate.name} ({conf.rounds.count} rounds)"
        return make_job(title, folder, key, text, RUN_CANDIDATE, kind=candidate.kind)

    def _conf(self, candidate: Candidate, short: bool) -> Conf:
        changed = [*self.overrides, *BASE, *candidate.overrides, "runtime.reuse=true"]
        conf = load_conf(self.conf_name, changed)
        rounds = max(1, conf.rounds.count // SHARE) if short else conf.rounds.count
        return replace(conf, rounds=replace(conf.rounds, count=rounds))


def num_jobs() -> int:
    """Return how many jobs a search has at most."""
    singles, pairs = len(POOL) + 1, 2 * len(POOL)
    halved = sum(n + -(-n // FINALISTS) for n in (singles, pairs))
    return len(CENTRAL) + len(HEADLINES) + halved + 2 * (PARTNERS + TOGETHER)


def best_partners(pairs: Sequence[Candidate], both: tuple[str, str], is_strict: bool) -> list[str]:
    """Return the best changes that one of the two was paired with, exemplars or others."""
    partners = dict.fromkeys(name for pair in pairs for name in pair.changes if name not in both)
    return [name for name in partners if (name not in EXEMPLARS) == is_strict][:PARTNERS]


def two_that_matter(ranked: Sequence[Candidate]) -> tuple[str, str]:
    """Return the two best single strict changes that go together and add to one another."""
    first, *others = [c.changes[0] for c in ranked if c.is_strict and c.changes]
    return first, next(name for name in others if _adds(name, (first,)))


def _grown(stage: str, bases: Sequence[tuple[str, ...]], names: Iterable[str]) -> list[Candidate]:
    """Return each base with each change that does not clash with it, every combination once."""
    combinations = {
        frozenset({*base, name}): (*base, name)
        for base in bases
        for name in names
        if _adds(name, base)
    }
    return [_candidate(stage, changes) for changes in combinations.values()]


def _unions(stage: str, best: Sequence[Candidate]) -> list[Candidate]:
    """Return the first candidate joined with the second, the third, and both."""
    grown: dict[frozenset[str], Candidate] = {}
    for others in ([1], [2], [1, 2]):
        picked = [best[0], *(best[place] for place in others if place < len(best))]
        changes = tuple(dict.fromkeys(change for c in picked for change in c.changes))
        joined = _candidate(stage, changes)
        if not _clash(changes):
            grown.setdefault(frozenset(joined.overrides), joined)
    grown.pop(frozenset(best[0].overrides), None)
    return list(grown.values())


def _candidate(stage: str, changes: tuple[str, ...]) -> Candidate:
    overrides = tuple(override for change in changes for override in POOL[change])
    return Candidate(stage, changes, overrides)


def _adds(name: str, base: Sequence[str]) -> bool:
    """Tell whether a change goes with others, adds to them, and has none of them in it."""
    own = set(POOL[name])
    others = [set(POOL[change]) for change in base]
    has_more = not own <= set().union(*others)
    return has_more and not any(each <= own for each in others) and not _clash([*base, name])


def _clash(changes: Sequence[str]) -> bool:
    """Tell whether two changes set the same key to different values."""
    chosen: dict[str, str] = {}
    for change in changes:
        for override in POOL[change]:
            key, value = override.split("=")
            if chosen.setdefault(key, value) != value:
                return True
    return False
