"""Is the ground ready? Kafka answers, and every topic the service needs is there, before anything is subscribed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import TypeVar

from choreo.broker import Broker, TopicInfo
from choreo.errors import BrokerError, ConfigurationError

_log = logging.getLogger("choreo.start")
_R = TypeVar("_R")
RETRY_S = 2.0


async def patiently(ask: Callable[[], Awaitable[_R]], until_s: float) -> _R:
    """Its answer. Asks until `until_s` (the loop's clock) while Kafka is away; a refusal (a wrong password) is final."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            return await ask()
        except BrokerError as error:
            left_s = until_s - loop.time()
            if not error.retriable or left_s <= 0:
                raise
            _log.warning("%s; trying for %.0f s more", error, left_s)
            await asyncio.sleep(min(RETRY_S, left_s))


async def wait_for_kafka(broker: Broker, until_s: float) -> tuple[str, Mapping[str, TopicInfo]]:
    """Who answers, and its topics; see `patiently`."""
    loop = asyncio.get_running_loop()
    cluster = broker.cluster()

    async def look() -> tuple[str, Mapping[str, TopicInfo]]:
        topics = await loop.run_in_executor(None, cluster.topics)
        return await loop.run_in_executor(None, cluster.describe), topics

    try:
        return await patiently(look, until_s)
    finally:
        cluster.close()


def check_topics(topics: Mapping[str, TopicInfo], wanted: Collection[str], service: str, explain: Callable[[str], str]) -> None:
    """Raises ConfigurationError naming every topic of `wanted` that is not there."""
    missing = [name for name in wanted if name not in topics]
    if missing:
        shown = ", ".join(f"{name} ({explain(name)})" for name in missing)
        raise ConfigurationError(
            f"{service}: topics missing, or not visible to this user: {shown}; make them with: choreo topics apply MODULE:NAME --yes"
        )
