from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from services_example.shipping.desk import Need, PackingDesk


def test_two_processes_that_complete_an_order_at_the_same_time_send_one_parcel(tmp_path: Path) -> None:
    orders = [f"o-{number}" for number in range(50)]
    start = Barrier(2)

    def bring(need: Need) -> list[str]:
        with PackingDesk(tmp_path / "shipping.db") as desk:
            start.wait(timeout=10)
            return [order_id for order_id in orders if desk.bring(order_id, need, event_id=f"{need} of {order_id}")]

    with ThreadPoolExecutor(2) as processes:
        completed = [order_id for found in processes.map(bring, Need) for order_id in found]

    assert sorted(completed) == sorted(orders)
    with PackingDesk(tmp_path / "shipping.db") as desk:
        assert sorted(desk.parcels()) == sorted(orders)


def test_what_raises_leaves_no_trace(tmp_path: Path) -> None:
    def break_off(desk: PackingDesk) -> None:
        with desk.transaction() as rows:
            rows.execute("insert into parcels values ('o-1')")
            raise ZeroDivisionError

    with PackingDesk(tmp_path / "shipping.db") as desk:
        with pytest.raises(ZeroDivisionError):
            break_off(desk)

        assert desk.parcels() == []


def test_a_closed_database_says_what_to_do(tmp_path: Path) -> None:
    desk = PackingDesk(tmp_path / "shipping.db")

    with pytest.raises(RuntimeError, match="enter it first"):
        desk.parcels()
