from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence

import pytest

from avsseg.weights.turn import SharedTurn

AllWaitFor = Callable[[SharedTurn, Sequence[Callable[[], object]]], None]


class Bench:
    """Threads that ask for their items while another one has the turn; what each got or what it was told."""

    def __init__(self, all_wait_for: AllWaitFor) -> None:
        self.all_wait_for = all_wait_for
        self.together: list[list[int]] = []
        self.told: dict[int, object] = {}

    def ask(
        self,
        items: Sequence[int],
        spoilt: Callable[[Sequence[int]], bool],
        most: int = 3,
        error: type[BaseException] = ValueError,
    ) -> None:
        turn = SharedTurn()

        def work(chosen: Sequence[int]) -> list[int]:
            self.together.append(list(chosen))
            if spoilt(chosen):
                raise error(f"spoilt: {list(chosen)}")
            return [10 * item for item in chosen]

        def one(item: int) -> None:
            try:
                self.told[item] = turn.combined(item, work, lambda chosen, _: len(chosen) < most)
            except error as raised:
                self.told[item] = str(raised)

        self.all_wait_for(turn, [functools.partial(one, item) for item in items])


@pytest.fixture
def bench(all_wait_for: AllWaitFor) -> Bench:
    return Bench(all_wait_for)


def test_who_waits_is_served_by_who_has_the_turn(bench: Bench) -> None:
    bench.ask([1, 2, 3, 4, 5], lambda chosen: False)
    assert bench.told == {item: 10 * item for item in (1, 2, 3, 4, 5)}
    assert sorted(len(chosen) for chosen in bench.together) == [2, 3]


def test_nobody_is_served_together_where_one_alone_fits(bench: Bench) -> None:
    bench.ask([1, 2, 3], lambda chosen: False, most=1)
    assert sorted(bench.together) == [[1], [2], [3]]


def test_an_error_reaches_the_thread_whose_item_it_is(bench: Bench) -> None:
    bench.ask([1, 2, 3], lambda chosen: 2 in chosen)
    assert bench.told == {1: 10, 2: "spoilt: [2]", 3: 30}


def test_what_fails_only_together_is_done_one_by_one(bench: Bench) -> None:
    bench.ask([1, 2, 3, 4], lambda chosen: len(chosen) > 1, most=9)
    assert bench.told == {1: 10, 2: 20, 3: 30, 4: 40}
    assert [len(chosen) for chosen in bench.together] == [4, 1, 1, 1, 1]


def test_the_turn_is_free_after_an_error() -> None:
    turn = SharedTurn()

    def broken(_: Sequence[int]) -> list[int]:
        raise ValueError("spoilt")

    with pytest.raises(ValueError, match="spoilt"):
        turn.combined(1, broken, lambda chosen, other: True)
    assert turn.combined(1, list, lambda chosen, other: True) == 1


class Held:
    """Stands for the memory of a pass."""


def test_what_a_failed_pass_held_is_free_when_it_is_tried_again_one_by_one(all_wait_for: AllWaitFor) -> None:
    turn = SharedTurn()
    held: list[weakref.ref[Held]] = []
    free: list[bool] = []

    def work(chosen: Sequence[int]) -> Sequence[int]:
        free.append(all(reference() is None for reference in held))
        memory = Held()
        held.append(weakref.ref(memory))
        if len(chosen) > 1:
            raise RuntimeError("out of memory")
        return chosen

    all_wait_for(turn, [functools.partial(turn.combined, i, work, lambda chosen, _: True) for i in range(2)])
    assert free == [True] * 3


def test_an_interrupt_leaves_the_others_their_turn(bench: Bench) -> None:
    bench.ask([1, 2, 3], lambda chosen: len(chosen) > 1, error=KeyboardInterrupt)
    stopped = [item for item, told in bench.told.items() if isinstance(told, str)]
    assert len(stopped) == 1
    assert {item: told for item, told in bench.told.items() if item not in stopped} == {
        item: 10 * item for item in {1, 2, 3} - set(stopped)
    }
