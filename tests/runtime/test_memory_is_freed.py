"""Is what a worker has done with out of memory again?"""

from __future__ import annotations

import gc

import orjson
import pytest

from choreo.errors import DecodeError
from choreo.handler import Handler
from tests.runtime.shop import Book, File, Placed, becomes, numbered, place, shop, shop_broker

BAD = {
    "no JSON": b"\xff no JSON",
    "no type": b"{}",
    "a field is missing": orjson.dumps({"type": "order.placed", "timestamp": "2026-11-22T22:36:07Z", "payload": {}}),
}


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
@pytest.mark.parametrize("make", [Book, File])
async def test_what_could_not_be_decoded_does_not_stay_in_memory(make: type[Book] | type[File], value: bytes) -> None:
    before = decode_errors()

    await dead_letters(make(), value)

    # The loop and a thread that ends may hold the last one for a moment; what is in a ring stays for ever.
    await becomes(lambda: decode_errors() <= before, "they are gone")


async def dead_letters(handler: Handler[Placed], value: bytes) -> None:
    broker = shop_broker()
    place(broker, *numbered(20), value=value)
    async with shop(broker, handler).worker() as worker:
        await becomes(lambda: worker.counters.dead_lettered == 20, "all are letters", worker)


def decode_errors() -> int:
    gc.collect()
    return sum(type(each) is DecodeError for each in gc.get_objects())
