from __future__ import annotations

import pytest

from dccl_flower.image_config import TwoSidedRoundsConf
from dccl_flower.learning.controlled import (
    STATISTICS,
    LocalRecipe,
    late_statistics,
    learning_rate,
    round_recipe,
)


@pytest.mark.parametrize(
    ("schedule", "num_rounds", "expected"),
    [
        ("constant", 3, [0.2, 0.2, 0.2]),
        ("last_two_halved", 5, [0.2, 0.2, 0.2, 0.1, 0.1]),
        ("last_two_halved", 2, [0.1, 0.1]),
        ("last_two_halved", 1, [0.1]),
        # 0.2 * (0.05 + 0.95 * (1 + cos(pi * k / 4)) / 2) for k = 0..4
        ("cosine", 5, [0.2, 0.1721751, 0.105, 0.0378249, 0.01]),
        ("cosine", 1, [0.2]),
    ],
)
def test_learning_rate_of_every_round(schedule, num_rounds, expected):
    rates = [learning_rate(schedule, 0.2, r + 1, num_rounds) for r in range(num_rounds)]
    assert rates == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("statistics", STATISTICS)
@pytest.mark.parametrize(("after", "first_late"), [(0.0, 1), (0.34, 4), (0.5, 6), (1.0, 11)])
def test_batch_statistics_serve_for_their_share_of_the_rounds(statistics, after, first_late):
    rounds = TwoSidedRoundsConf(count=10, freeze_statistics_after=after)
    used = [late_statistics(rounds, r, statistics) for r in range(1, 11)]
    assert used == ["batch"] * (first_late - 1) + [statistics] * (11 - first_late)


def test_the_recipe_of_a_round_is_that_of_the_configuration():
    rounds = TwoSidedRoundsConf(
        count=4, local_steps=7, lr=0.2, momentum=0.3, weight_decay=0.1, max_grad_norm=2.0
    )
    assert round_recipe(rounds, 1) == LocalRecipe(7, 0.2, 0.3, 0.1, "batch", 2.0)
    assert round_recipe(rounds, 4) == LocalRecipe(7, 0.1, 0.3, 0.1, "batch", 2.0)
