"""``dccl search``: which changes of a method close the gap, found without the test set.

First the bounds and the settings that the configuration's arms already have, then successive
halving (Jamieson and Talwalkar, arXiv 1502.07943) over a growing combination: every change alone,
each with one of the two that matter most, the best of those with both, and the best of these
together, with and without samples that go down. In the first two stages all candidates run a third
of the rounds, and the best fifth of them then runs all. Scores are those of training images that
neither side holds: pooled validation data, which an offline search may use and a federation may
not.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dccl_flower.config import ArmsConf, Conf, ConfError
from dccl_flower.config_loading import dump_conf, load_conf
from dccl_flower.files import code_digest, content_key
from dccl_flower.simulations.arms.arms import arm_conf, load_arms
from dccl_flower.simulations.jobs import Job, JobRunner, make_job
from dccl_flower.simulations.search.space import BOUND, Candidate, Space

RUN_CANDIDATE = "dccl_flower.simulations.search.run:run_candidate"
SHARE, FINALISTS = 3, 5
PARTNERS, TOGETHER = 4, 3


@dataclass
class Search:
    """A search over one configuration; ``scored`` grows as candidates end."""

    conf_name: str
    overrides: Sequence[str]
    folder: Path
    runner: JobRunner
    space: Space
    scored: list[dict[str, Any]] = field(default_factory=list)

    def run(self) -> None:
        """Go through the stages."""
        space = self.space
        self._score([*self._bounds(), *self._headlines()], short=False)
        singles = [Candidate("alone", (), ()), *space.grown("alone", [()], space.pool)]
        ranked = self._halve(singles)
        first, second = two_that_matter(ranked, space)
        pairs = self._halve(space.grown("with one", [(first,), (second,)], space.pool))
        for is_strict in (True, False):
            partners = best_partners(pairs, (first, second), is_strict, space)
            triples = space.grown("with both", [(first, second)], partners)
            kept = self._score(triples, short=False)[:TOGETHER]
            if kept:
                self._score(space.unions("together", kept), short=False)

    @cached_property
    def _base(self) -> Conf:
        return load_conf(self.conf_name, self.overrides)

    def _bounds(self) -> list[Candidate]:
        lr = self._base.rounds.lr
        rates = {"twice": 2 * lr, "half": lr / 2}
        return [
            Candidate(BOUND, (name,), tuple(each.format(**rates) for each in keys), BOUND)
            for name, keys in self.space.bounds.items()
        ]

    def _headlines(self) -> list[Candidate]:
        """Return the arms drawn as curves; raises ConfError where one cannot run."""
        arms = self._base.arms
        table, found = load_arms(arms.rows), []
        for name, row in table.arms.items():
            if row.curve:
                arm_conf(table, name, self.conf_name, self.overrides, 0)
                found.append(Candidate("headline", (name,), (*row.changed(name, arms.changes),)))
        return found

    def _halve(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Return the candidates, best first: those with all rounds before those with a third."""
        by_short = self._score(candidates, short=True)
        finalists = by_short[: -(-len(by_short) // FINALISTS)]
        return self._score(finalists, short=False) + by_short[len(finalists) :]

    def _score(self, candidates: Sequence[Candidate], short: bool) -> list[Candidate]:
        """Run the candidates that are possible; return those that did not fail, best first."""
        possible, jobs = [], []
        for candidate in candidates:
            with suppress(ConfError):  # not every start goes with every norm, say
                jobs.append(self._job(candidate, short))
                possible.append(candidate)
        scored = []
        for candidate, outcome in zip(possible, self.runner.run(jobs), strict=True):
            row = {**asdict(candidate), "name": candidate.name, "all_rounds": not short}
            self.scored.append({**row, **(outcome.result or {"error": outcome.error})})
            if outcome.result is not None:
                scored.append((outcome.result["score"], candidate))
        return [candidate for _, candidate in sorted(scored, key=lambda pair: -pair[0])]

    def _job(self, candidate: Candidate, short: bool) -> Job:
        """Lay down a candidate's job. Raises ConfError where its changes do not go together."""
        changed = [*self.overrides, *self.space.base, *candidate.overrides, "runtime.reuse=true"]
        conf = replace(load_conf(self.conf_name, changed), arms=ArmsConf())
        rounds = max(1, conf.rounds.count // SHARE) if short else conf.rounds.count
        conf = replace(conf, rounds=replace(conf.rounds, count=rounds))
        text = dump_conf(conf)
        key = content_key(code_digest(), candidate.kind, text)
        title = f"{candidate.stage}: {candidate.name} ({rounds} rounds)"
        return make_job(title, self.folder / "candidates" / key, key, text, RUN_CANDIDATE)


def num_jobs(space: Space, headlines: int) -> int:
    """Return how many jobs a search has at most."""
    singles, pairs = len(space.pool) + 1, 2 * len(space.pool)
    halved = sum(n + -(-n // FINALISTS) for n in (singles, pairs))
    return len(space.bounds) + headlines + halved + 2 * (PARTNERS + TOGETHER)


def best_partners(
    pairs: Sequence[Candidate], both: tuple[str, str], is_strict: bool, space: Space
) -> list[str]:
    """Return the best changes that one of the two was paired with, of either kind."""
    partners = dict.fromkeys(name for pair in pairs for name in pair.changes if name not in both)
    return [n for n in partners if (n not in space.samples_down) == is_strict][:PARTNERS]


def two_that_matter(ranked: Sequence[Candidate], space: Space) -> tuple[str, str]:
    """Return the two best single strict changes that go together and add to one another."""
    first, *others = [c.changes[0] for c in ranked if space.is_strict(c) and c.changes]
    return first, next(name for name in others if space.adds(name, (first,)))
