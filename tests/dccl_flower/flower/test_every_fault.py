from __future__ import annotations

import pytest
from fault_rows import ROWS


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_fault_ends_as_the_policy_declares(row, tmp_path):
    tries = list(row.tries(tmp_path))
    assert tries
    assert all(each.as_declared for each in tries), tries
