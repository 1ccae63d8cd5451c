from __future__ import annotations

import time

import torch

from avsseg.benchmark.timing import time_in_turn


def test_actions_take_turns_and_are_timed() -> None:
    done: list[str] = []
    said: list[str] = []

    def slow() -> None:
        done.append("slow")
        time.sleep(0.02)

    times = time_in_turn({"slow": slow, "quick": lambda: done.append("quick")}, 3, torch.device("cpu"), said.append)
    assert done == ["slow", "quick"] * 3
    assert said[:3] == ["round 1 of 3: slow", "round 1 of 3: quick", "round 2 of 3: slow"]
    assert [len(taken) for taken in times.values()] == [3, 3]
    assert min(times["slow"]) >= 0.02 > min(times["quick"])
