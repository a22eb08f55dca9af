"""Names of programs whose rule cannot be made sound: what is wrong with it, and what to take."""

from __future__ import annotations

RETIRED = {
    "prodigyadv": "after a save and a load it goes on with other steps (adv_optm 2.5.16); use Prodigy",
    "lionadv": "its state cannot be loaded again (adv_optm 2.5.16), so no training could continue; use Lion",
}
"""Without case, "_" and "-"."""
