"""Work in threads, in order; and a collector that rests."""

import gc
from types import SimpleNamespace

import pytest

from core.processes import TOGETHER, in_threads, no_collection, shared


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


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("items", [0, 1, 7])
def test_ranks_share_items_and_all_get_all_outcomes(monkeypatch, count, items):
    """Each rank in turn, with a stand-in for the gathering: the shares of all ranks, computed beforehand."""
    computed = []

    def square(item):
        computed.append(item)
        return item**2

    shares = [[item**2 for item in range(items)[rank::count]] for rank in range(count)]
    monkeypatch.setattr("accelerate.utils.gather_object", lambda mine: shares)
    for rank in range(count):
        accelerator = SimpleNamespace(process_index=rank, num_processes=count)
        assert shared(accelerator, square, range(items)) == [item**2 for item in range(items)]
    assert sorted(computed) == list(range(items))
