"""Names of programs whose rule cannot be made sound: what is wrong with it, and what to take."""

from __future__ import annotations

RETIRED = {
    "lionadv": "its state cannot be loaded again (adv_optm 2.5.16), so no training could continue; use Lion8bit",
}
"""Without case, "_" and "-"."""
