"""Every family generates with every setting as the table promises; see `contract_table`."""

from __future__ import annotations

from typing import Any

import pytest
from contract_bench import assert_kept
from contract_table import Cell, lacking


def test_generating_keeps_the_promise_of_the_table(generating_cell: Cell, bench: Any) -> None:
    setting = generating_cell.setting
    missing = lacking(setting.needs, bench.device, bench.sixteen_bits(generating_cell))
    if missing:
        pytest.skip(missing)
    result, reference = bench.latents(generating_cell), bench.reference_latents(generating_cell)
    assert_kept({"latents": result}, {"latents": reference}, setting.promise)
