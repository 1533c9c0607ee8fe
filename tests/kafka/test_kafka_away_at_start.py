"""What does a service do that is started before its Kafka?"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from choreo import BrokerError, KafkaSettings
from tests.kafka.ground import Ground, Sent, becomes
from tests.kafka.shop import Book, placed
from tests.support.kafka_node import free_ports

pytestmark = pytest.mark.kafka

UNREACHABLE = 4
END_S = 30.0
LOOK_S = 5.0
"""What one look for brokers may take beyond the deadline."""


async def test_it_tries_again_and_says_so_and_gives_up_when_its_deadline_is_over(ground: Ground, caplog: pytest.LogCaptureFixture) -> None:
    (port,) = free_ports(1)
    nowhere = KafkaSettings(bootstrap=f"127.0.0.1:{port}")

    began_s = time.monotonic()
    with pytest.raises(BrokerError) as gave_up:
        await ground.run(ground.service(Book(), kafka=nowhere, start_deadline_s=4))
    took_s = time.monotonic() - began_s

    assert 4 <= took_s < 4 + LOOK_S
    assert str(gave_up.value).startswith(f"Kafka at 127.0.0.1:{port}: _TRANSPORT: ")
    assert str(gave_up.value).endswith("Connection refused (after 0ms in state CONNECT); is Kafka up, and is CHOREO_BOOTSTRAP right?")
    said = [record.getMessage() for record in caplog.records if record.name == "choreo.start"]
    assert said != []
    assert [text for text in said if not text.endswith(" s more")] == []


async def test_it_starts_when_kafka_comes_within_the_deadline(ground: Ground, caplog: pytest.LogCaptureFixture) -> None:
    ground.make(orders=1)
    ground.put("orders", Sent(placed()))
    (port,) = free_ports(1)
    book = Book()

    late = KafkaSettings(bootstrap=f"127.0.0.1:{port}")
    running = asyncio.create_task(ground.run(ground.service(book, kafka=late, start_deadline_s=30)))
    await becomes(lambda: any(record.name == "choreo.start" for record in caplog.records), "it waits for Kafka")
    async with forwarded(port, ground.kafka.bootstrap):
        await running

    assert book.orders == ["o-1"]


async def test_a_host_that_does_not_exist_is_named(ground: Ground) -> None:
    with pytest.raises(BrokerError, match="is the host name in CHOREO_BOOTSTRAP right") as gave_up:
        await ground.run(ground.service(Book(), kafka=KafkaSettings(bootstrap="no-such-host.invalid:9092"), start_deadline_s=0))

    assert gave_up.value.code == "_RESOLVE"


def test_the_command_line_exits_with_its_own_code_and_few_lines(ground: Ground, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    target = "tests.kafka.shop:payments"
    where = {"CHOREO_BOOTSTRAP": f"127.0.0.1:{port}", "CHOREO_START_DEADLINE_S": "1"}
    with ground.process(target, tmp_path / "worker.log", **where) as worker:
        code = worker.wait(END_S)

    lines = worker.output().splitlines()
    assert (code, len(lines) <= 3) == (UNREACHABLE, True)
    assert lines[-1].endswith("is Kafka up, and is CHOREO_BOOTSTRAP right?")


@contextlib.asynccontextmanager
async def forwarded(port: int, bootstrap: str) -> AsyncIterator[None]:
    """Someone who passes everything on to Kafka."""
    host, _, kafka_port = bootstrap.split(",")[0].rpartition(":")
    open_ends: list[asyncio.StreamWriter] = []

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kafka_reader, kafka_writer = await asyncio.open_connection(host, int(kafka_port))
        open_ends.extend((writer, kafka_writer))
        await asyncio.gather(_pump(reader, kafka_writer), _pump(kafka_reader, writer), return_exceptions=True)

    server = await asyncio.start_server(pass_on, "127.0.0.1", port)
    try:
        yield
    finally:
        server.close()
        for end in open_ends:
            end.close()
        await asyncio.gather(*(end.wait_closed() for end in open_ends), return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
