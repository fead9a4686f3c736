from __future__ import annotations

import time

import torch

from qn_deploy.bench.measure import _in_turn


def test_programs_run_in_turn_and_each_second_round_backwards() -> None:
    order: list[str] = []

    def program(name: str, seconds: float):  # type: ignore[no-untyped-def]
        def call(batch: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            order.append(name)
            time.sleep(seconds)
            return batch

        return call

    taken = _in_turn([program("a", 0.0), program("b", 0.002), program("c", 0.0)], (torch.zeros(1),), 4)
    assert "".join(order) == "abccbaabccba"
    assert [len(each) for each in taken] == [4, 4, 4]
    assert min(taken[1]) >= 2.0 > min(taken[0])
