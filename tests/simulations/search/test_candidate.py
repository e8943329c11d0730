from __future__ import annotations

from dataclasses import replace

from small_experiments import small_experiment

from dccl_flower.method import find_method
from dccl_flower.simulations.app import in_process
from dccl_flower.simulations.search import search


def test_both_halves_of_a_candidate_score_by_images_that_nobody_holds(tmp_path, monkeypatch):
    plain, told = find_method("fedavg"), []

    def noting(half):
        def build(experiment, *more):
            told.append(experiment.scores_unseen)
            return half(experiment, *more)

        return build

    noted = replace(plain, server=noting(plain.server), device=noting(plain.device))
    for module in (search, in_process):
        monkeypatch.setattr(module, "find_method", lambda name: noted)
    experiment = small_experiment("method.name=fedavg", "data.train_fraction=0.5")
    assert 0 < search.run_candidate(experiment, {}, tmp_path)["score"] <= 1
    assert told == [True, True]
