"""What every trace in Chrome's format has to fulfil."""

from __future__ import annotations

from typing import Any


def check_events(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The complete events, after checking that all have their fields, rise within each thread, and nest."""
    assert {e["ph"] for e in events} <= {"X", "M"}
    named = {(e["pid"], e["tid"]) for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
    complete = [e for e in events if e["ph"] == "X"]
    rows: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for e in complete:
        assert set(e) == {"name", "cat", "ph", "pid", "tid", "ts", "dur", "args"}
        assert all(isinstance(e[k], kind) for k, kind in {"name": str, "pid": int, "tid": int, "args": dict}.items())
        assert e["ts"] >= 0
        assert e["dur"] >= 0
        rows.setdefault((e["pid"], e["tid"]), []).append(e)
    assert rows.keys() <= named
    for row in rows.values():
        ends: list[float] = []
        assert [e["ts"] for e in row] == sorted(e["ts"] for e in row)
        for e in row:
            while ends and ends[-1] <= e["ts"] + 1e-6:
                ends.pop()
            assert not ends or e["ts"] + e["dur"] <= ends[-1] + 1e-6, e
            ends.append(e["ts"] + e["dur"])
    return complete
