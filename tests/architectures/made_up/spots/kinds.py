"""How weight files of Spots are recognised."""

from __future__ import annotations

from ...weights.kinds import Rule

RULES = (
    Rule("spots_edit_transformer", "Spots editing transformer", ("spots.weight", "control.weight")),
    Rule("spots_transformer", "Spots transformer", ("spots.weight",), ("control.weight",)),
    Rule("spots_alphabet", "alphabet of Spots", ("letters",)),
    Rule("spots_dictionary", "dictionary of Spots", ("words",)),
)
LORAS = ()
