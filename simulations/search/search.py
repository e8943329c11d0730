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

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import click

from dccl_flower.codecs import State
from dccl_flower.config import ArmsConf, Conf, ConfError
from dccl_flower.config_loading import dump_conf, with_overrides
from dccl_flower.engine import RoundFacts
from dccl_flower.experiment import Experiment
from dccl_flower.files import code_digest, content_key, write_aside, write_json
from dccl_flower.image_config import RoundsConf
from dccl_flower.method import find_method
from dccl_flower.simulations.app.in_process import rounds_here
from dccl_flower.simulations.arms.arms import Arm, ArmTable, arm_conf, load_arms
from dccl_flower.simulations.arms.report import LAST_ROUNDS as SWING_ROUNDS
from dccl_flower.simulations.arms.report import largest_swing
from dccl_flower.simulations.experiment import open_experiment
from dccl_flower.simulations.jobs import Job, JobRunner, Progress, make_job
from dccl_flower.simulations.run.runner import signals_as_interrupts
from dccl_flower.simulations.search.report import markdown
from dccl_flower.simulations.search.space import BOUND, Candidate, Space, load_space
from dccl_flower.simulations.superlink import RunError

RUN_CANDIDATE = "dccl_flower.simulations.search.search:run_candidate"
SHARE, FINALISTS = 3, 5
PARTNERS, TOGETHER = 4, 3
LAST_ROUNDS = 3


def run_search(conf: Conf, folder: Path, side_by_side: int, command: str) -> None:
    """Search and write ``search.json`` and ``search.md``.

    Raises ConfError where the configuration leaves nothing but the test set to choose by.
    """
    space = load_space(conf.method.name)
    open_experiment(conf).on_unseen()
    headlines = headline_arms(load_arms(conf.arms.rows))
    progress = Progress(click.echo, num_jobs(space, len(headlines)), side_by_side)
    folder.mkdir(parents=True, exist_ok=True)
    with signals_as_interrupts(), JobRunner(side_by_side, progress.ended) as runner:
        search = Search(conf, folder, runner, space)
        try:
            search.run()
        finally:  # half a search is worth reading too
            text = markdown(search.scored, conf, command)
            write_json(folder / "search.json", search.scored)
            write_aside(folder / "search.md", text)
    click.echo(text)
    click.echo(f"search: {folder}")


@dataclass
class Search:
    """A search over one configuration; ``scored`` grows as candidates end."""

    conf: Conf
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

    def _bounds(self) -> list[Candidate]:
        rounds = self.conf.rounds
        assert isinstance(rounds, RoundsConf)  # as of all methods that have a space to search
        lr = rounds.lr
        rates = {"twice": 2 * lr, "half": lr / 2}
        return [
            Candidate(BOUND, (name,), tuple(each.format(**rates) for each in keys), BOUND)
            for name, keys in self.space.bounds.items()
        ]

    def _headlines(self) -> list[Candidate]:
        """Return the configuration's arms as candidates; raises ConfError where one cannot run."""
        arms = self.conf.arms
        table, found = load_arms(arms.rows), []
        for name, row in headline_arms(table).items():
            arm_conf(table, name, self.conf, 0)
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
        changed = [*self.space.base, *candidate.overrides, "runtime.reuse=true"]
        conf = replace(with_overrides(self.conf, changed), arms=ArmsConf())
        rounds = max(1, conf.rounds.count // SHARE) if short else conf.rounds.count
        conf = replace(conf, rounds=replace(conf.rounds, count=rounds))
        text = dump_conf(conf)
        key = content_key(code_digest(), candidate.kind, text)
        title = f"{candidate.stage}: {candidate.name} ({rounds} rounds)"
        return make_job(title, self.folder / "candidates" / key, key, text, RUN_CANDIDATE)


def headline_arms(table: ArmTable) -> dict[str, Arm]:
    """Return the arms drawn as curves, but for those that need another's finished run."""
    return {n: row for n, row in table.arms.items() if row.curve and row.builds_on is None}


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
    return [name for name in partners if (name in space.changes) == is_strict][:PARTNERS]


def two_that_matter(ranked: Sequence[Candidate], space: Space) -> tuple[str, str]:
    """Return the two best single strict changes that go together and add to one another.

    Raises RunError where no two came through that do.
    """
    names = [name for each in ranked for name in each.changes if name in space.changes]
    for name in names[1:]:
        if space.adds(name, names[:1]):
            return names[0], name
    raise RunError("no two changes that add to one another came through; search.md tells of each")


def run_candidate(
    experiment: Experiment, description: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """Train one candidate, in a job of its own, and score it on images that nobody holds.

    Its scores are the means of its last rounds.
    """
    experiment = experiment.on_unseen()  # for devices too: they may score
    conf = experiment.conf
    method = find_method(conf.method.name).server(experiment, lambda *_: None)
    method.prepare()
    started, scores = time.monotonic(), []

    def after_round(number: int, state: State, facts: RoundFacts) -> None:
        if number > conf.rounds.count - SWING_ROUNDS and number > 0:
            scores.append(dict(method.scores(state)))

    sent = rounds_here(experiment, method, after_round)
    last, first = scores[-LAST_ROUNDS:], next(iter(scores[0]))
    means = {name: sum(each[name] for each in last) / len(last) for name in scores[0]}
    held = [each[first] for each in method.references().values() if first in each]
    return {
        "score": means[first],
        "scores": means,
        "swing": largest_swing([each[first] for each in scores]) or 0.0,
        "bytes_a_device": sum(sent.values()) / conf.devices.count,
        "reference": held[0] if held else None,
        "seconds": time.monotonic() - started,
    }
