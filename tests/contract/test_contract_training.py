"""Every family trains with every setting as the table promises; see `contract_table`."""

from __future__ import annotations

from typing import Any

import pytest
from contract_bench import assert_kept
from contract_models import FAMILIES
from contract_table import BITS, PRECISIONS, SIXTEEN_BITS, TRAINING, Cell, lacking, row


def test_training_keeps_the_promise_of_the_table(training_cell: Cell, bench: Any) -> None:
    cell, setting = training_cell, training_cell.setting
    missing = lacking(setting.needs, bench.device, bench.sixteen_bits(cell))
    if missing:
        pytest.skip(missing)
    result = bench.train(cell)
    if cell.life != "straight":
        assert_kept(result, bench.straight(Cell(cell.family, cell.precision, setting, "straight")), BITS)
    assert_kept(result, bench.reference_lora(cell), setting.promise)


@pytest.mark.parametrize("family", FAMILIES)
def test_sixteen_bits_learn_what_the_devices_own_precision_learns(family: str, bench: Any) -> None:
    own, sixteen = (bench.straight(Cell(family, precision, row(TRAINING, "plain"), "straight")) for precision in PRECISIONS)
    assert_kept(sixteen, own, SIXTEEN_BITS)
