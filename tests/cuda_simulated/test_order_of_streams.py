"""What streams may do out of order is found, and what events forbid is not."""

from __future__ import annotations

from simulated_order import Order

COPY, MAIN = "copy stream", "main stream"


def order() -> Order:
    """A buffer on the GPU and a source in system RAM, known under their names."""
    made = Order()
    made.allocate("buffer", "the buffer", MAIN)
    made.allocate("source", "the source", None)
    return made


def test_a_read_needs_the_copy_before_it() -> None:
    wrong, right = order(), order()
    for one in (wrong, right):
        one.launch(COPY, ["source"], ["buffer"], "copy")
    right.wait(MAIN, right.record(COPY))
    for one in (wrong, right):
        one.launch(MAIN, ["buffer"], [], "mm")
    assert wrong.races == ["mm on main stream reads the buffer, which copy stream may not have written yet"]
    assert right.races == []


def test_an_overwrite_needs_the_last_read_before_it() -> None:
    wrong, right = order(), order()
    for one in (wrong, right):
        one.launch(MAIN, ["buffer"], [], "mm")
    right.wait(COPY, right.record(MAIN))
    for one in (wrong, right):
        one.launch(COPY, ["source"], ["buffer"], "copy")
    assert wrong.races == ["copy overwrites the buffer, which main stream may still read"]
    assert right.races == []


def test_an_event_recorded_too_early_is_no_help() -> None:
    one = order()
    early = one.record(COPY)
    one.launch(COPY, ["source"], ["buffer"], "copy")
    one.wait(MAIN, early)
    one.launch(MAIN, ["buffer"], [], "mm")
    assert len(one.races) == 1


def test_what_one_stream_knows_goes_on_with_its_events() -> None:
    one = order()
    one.launch(COPY, ["source"], ["buffer"], "copy")
    one.wait("third stream", one.record(COPY))
    one.wait(MAIN, one.record("third stream"))
    one.launch(MAIN, ["buffer"], [], "mm")
    assert one.races == []


def test_the_host_may_not_fill_what_a_copy_still_reads() -> None:
    one = order()
    one.launch(COPY, ["source"], ["buffer"], "copy")
    one.touch("main", "source", False, "reading is harmless")
    assert one.races == []
    one.touch("worker", "source", True, "filling")
    assert one.races == ["filling overwrites the source, which copy stream may still read"]
    one.launch(COPY, ["source"], ["buffer"], "copy")
    one.synchronize("worker", one.record(COPY))
    one.touch("worker", "source", True, "filling again")
    assert len(one.races) == 1


def test_memory_that_is_freed_is_used_again_by_its_stream_only_when_others_are_done() -> None:
    def freed(told: bool = False, waited: bool = False) -> list[str]:
        one = order()
        one.launch(COPY, ["buffer"], [], "copy")
        if told:
            one.keep("buffer")
        one.free("buffer")
        if waited:
            one.wait(MAIN, one.record(COPY))
        one.allocate("next", "the next", MAIN)
        return one.races

    assert freed() == ["the buffer was freed and its memory is used again by main stream while copy stream may still use it"]
    assert freed(told=True) == freed(waited=True) == []
