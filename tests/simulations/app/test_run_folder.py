from __future__ import annotations

import pytest

from dccl_flower.config import Conf, ConfError
from dccl_flower.simulations.app.run_folder import (
    CONF_FILE,
    check_folder,
    claim_folder,
    default_folder,
    make_folder,
)


def test_a_claimed_folder_cannot_be_claimed_again(tmp_path):
    claim_folder(tmp_path / "run")
    with pytest.raises(ConfError, match="is not empty"):
        claim_folder(tmp_path / "run")


def test_what_the_runner_laid_down_is_no_obstacle(tmp_path):
    make_folder(tmp_path / "run")
    (tmp_path / "run" / CONF_FILE).write_text("seed: 0\n")
    claim_folder(tmp_path / "run")


def test_checking_makes_nothing(tmp_path):
    check_folder(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_two_runs_of_one_second_get_two_folders():
    assert default_folder(Conf()) != default_folder(Conf())
