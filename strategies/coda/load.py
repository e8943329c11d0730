"""What CoDA takes a device: its turns by the virtual clock, and what it serves."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from dccl_flower.data.interactions import PAST, RECENT, TEST
from dccl_flower.device_store import Parcel
from dccl_flower.fleet.tiers import Load, Piece
from dccl_flower.interaction_experiment import InteractionExperiment
from dccl_flower.method import Served
from dccl_flower.models.recommender import Recommender
from dccl_flower.strategies.coda.conf import conf_of
from dccl_flower.strategies.coda.shared import MODEL, packed, told_keys
from dccl_flower.strategies.loads import fitting, scoring
from dccl_flower.strategies.ranked import SCORE_BYTES


def turn_load(experiment: InteractionExperiment, model: Recommender, pool: int) -> Load:
    """Return what a turn takes a device with as many samples as devices have in the mean.

    It tells its keys, receives samples, trains on them and its own, and scores; the model comes
    once. ``pool``: how many samples the cloud searches. A device is taken to be offered as many as
    may be and to keep all. The classifier of samples, a linear one, is not counted.
    """
    conf, example = conf_of(experiment), experiment.example
    size, new = conf.device.batch_size, experiment.rows_a_device(TEST)
    scores = scoring(model, example, size, new)
    keep_bytes = len(Parcel.of(model.state_dict()).blob())
    if conf.method.serves == "cloud":
        return Load([Piece(up_bytes=SCORE_BYTES), scores], keep_bytes)
    own, offered, crossing = experiment.rows_a_device(PAST, RECENT), 0.0, 0
    pieces = []
    if conf.matching.by != "nothing":
        offered = min(conf.matching.each * own, pool)
        crossing = round(offered * _num_bytes(packed(example)))
        pieces.append(Piece(up_bytes=round(own * _num_bytes(told_keys(example)))))
        if conf.sieve.keeps in ("hard", "soft") and conf.sieve.sees == "representation":
            pieces.append(scoring(model, example, size, own + offered))
    pieces.append(Piece(down_bytes=crossing, up_bytes=SCORE_BYTES))
    if conf.sieve.keeps == "users":  # one pass over others' samples, before those over its own
        once = replace(conf.device, epochs=1)
        pieces.append(fitting(model, example, once, offered))
        offered = 0.0
    pieces.append(fitting(model, example, conf.device, own + offered))
    return Load([*pieces, scores], keep_bytes)


def served(experiment: InteractionExperiment) -> Served:
    """Return the model with a batch: a device's own differs from the cloud's in weights alone."""
    size = conf_of(experiment).device.batch_size
    batch = experiment.samples(experiment.log.rows_in(RECENT)[:size])
    return {MODEL: (experiment.recommender(), batch)}


def _num_bytes(columns: dict[str, Tensor]) -> int:
    return sum(column.nbytes for column in columns.values())
