"""Jobs that end at once, with results that follow from their configurations."""

from __future__ import annotations

import json

from dccl_flower.config_loading import load_conf
from dccl_flower.simulations.jobs import Outcome


class FakeRunner:
    """Stands in for the runner; ``score`` makes a result of a configuration, None a failure."""

    started: list
    score: staticmethod

    @classmethod
    def by(cls, score):
        """Return a kind of runner that scores so and keeps the titles of what it has run."""
        return type("Fake", (cls,), {"score": staticmethod(score), "started": []})

    def __init__(self, side_by_side, on_end):
        self._on_end = on_end

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def run(self, jobs):
        return [self._run(job) for job in jobs]

    def _run(self, job):
        outcome = Outcome(job, job.result())
        if outcome.result is None:
            self.started.append(job.title)
            result = self.score(load_conf(str(job.folder / "conf.yaml")))
            if result is not None:
                text = json.dumps({"key": job.key, **result})
                (job.folder / "result.json").write_text(text)
            outcome = Outcome(job, job.result(), "" if result else "no data", 1.0)
        self._on_end(outcome)
        return outcome


def result_of(**scores):
    """Return what an arm's job leaves."""
    return {"scores": scores, "rounds": [], "seconds": 2.0, "references": {}, "versions": {}}
