"""Work in threads, in order; and a collector that rests."""

import gc

import pytest

from core.processes import TOGETHER, in_threads, no_collection


def test_threads_give_every_outcome_in_order():
    items = list(range(3 * TOGETHER + 1))
    assert in_threads(lambda item: item * item, items) == [item * item for item in items]
    assert in_threads(str, []) == []


def test_an_error_in_a_thread_comes_through():
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda item: 1 // item, [2, 1, 0])


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_rests_for_the_block_alone(enabled):
    try:
        (gc.enable if enabled else gc.disable)()
        with no_collection():
            assert not gc.isenabled()
        assert gc.isenabled() is enabled
        with pytest.raises(KeyError), no_collection():
            raise KeyError
        assert gc.isenabled() is enabled
    finally:
        gc.enable()
