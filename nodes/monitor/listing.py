"""`GET jobs`: which of all jobs are meant, and as many of them as are shown at once."""

from __future__ import annotations

from typing import Any

from ...backend.musubi_backend.errors import UserError
from ..jobs.folder import ENDED
from ..jobs.index import Index

_MOST, _USUAL = 5000, 200
_LONGEST = 200  # characters


def listed(index: Index, query: Any) -> dict[str, Any]:
    """The newest ones that the query means, and all of those that have not ended. UserError for what is no query."""
    limit, before = query.get("limit", str(_USUAL)), query.get("before")
    if not limit.isascii() or not limit.isdecimal() or not 1 <= int(limit[:9]) <= _MOST:
        raise UserError(f"limit is a number from 1 to {_MOST}")
    found = [job for job in index.jobs() if _meant(job, query)]
    older = [job for job in found if before is None or job["id"] < before]
    shown, rest = older[: int(limit)], older[int(limit) :]
    more = any(job["state"] == ENDED for job in rest)
    return {
        "jobs": [*shown, *(job for job in rest if job["state"] != ENDED)],
        "total": len(found),
        "more": more,
        "next": shown[-1]["id"] if more else None,
    }


def _meant(job: dict[str, Any], query: Any) -> bool:
    kind, outcomes, find = query.get("kind"), query.get("outcome"), query.get("find", "")[:_LONGEST].casefold()
    called = f"{job['name']} {job['id']} {job['architecture'] or ''}".casefold()
    return (
        (kind is None or job["kind"] == kind)
        and (outcomes is None or job["outcome"] in outcomes.split(","))
        and (find in called or (not job["name"] and job["verb"] in query.get("verbs", "").split(",")))
    )
