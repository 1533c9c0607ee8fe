"""``choreo demo``: four services, 200 orders, planned faults, dead letters, a fix, a replay. Its end is checked: exit 0 or 1.

What it tells is in demo_story.py, the running shop in demo_shop.py; both need `services_example`, so they are imported late.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from choreo.cli import screen
from choreo.errors import ChoreoError, ConfigurationError
from choreo.kafka.settings import EMBEDDED

INTERRUPTED = 130
SHOWN = 10
AGAIN = "choreo demo --bootstrap HOST:PORT"
_KEPT = ("CHOREO_KAFKA_PROPERTIES", "CHOREO_KAFKA_PROPERTIES_FILE", "CHOREO_GROUP_PROTOCOL")


def demo(
    bootstrap: Annotated[
        str, typer.Option("--bootstrap", metavar="HOST:PORT", help="A Kafka to play on; topics get a prefix of their own, and stay.")
    ] = EMBEDDED,
    orders: Annotated[int, typer.Option("--orders", min=1, max=200, help="How many orders are placed.")] = 200,
) -> None:
    """Watch four services handle 200 orders and planned faults, in about ten seconds. Exit 0: all ended well; 1: not."""
    try:
        from choreo.cli.demo_story import Story
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "services_example":
            raise
        raise ConfigurationError(
            "the demo's shop, services_example, is not installed; it comes with choreo: pip install --force-reinstall choreo"
        ) from error
    began_s = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="choreo-demo-"))
    prefix = "" if bootstrap == EMBEDDED else f"demo-{secrets.token_hex(2)}."
    with _environment(bootstrap, prefix), _log_in(folder / "demo.log"):
        try:
            wrong = asyncio.run(Story(folder, bootstrap, prefix, orders).tell())
        except KeyboardInterrupt:
            shutil.rmtree(folder, ignore_errors=True)
            screen.tell("stopped")
            raise typer.Exit(INTERRUPTED) from None
        except ChoreoError:
            screen.tell(f"look  {folder}/demo.log")
            raise
    _conclude(wrong, folder, time.monotonic() - began_s)


def _conclude(wrong: list[str], folder: Path, took_s: float) -> None:
    """The last line; typer.Exit(1) when something is wrong."""
    if not wrong:
        shutil.rmtree(folder, ignore_errors=True)
        screen.say(f"all is well, after {screen.duration(took_s)}")
        screen.show_facts([("next", ["services_example/README.md tells how it works", f"{AGAIN} plays on your own Kafka"])])
        return
    for line in wrong[:SHOWN]:
        screen.say(f"FAIL  {screen.safe(line, 400)}")
    if len(wrong) > SHOWN:
        screen.say(f"FAIL  ... and {len(wrong) - SHOWN:,} more")
    screen.say(f"{screen.many(len(wrong), 'thing')} wrong, after {screen.duration(took_s)}; its log and its books stay in {folder}")
    raise typer.Exit(1)


@contextmanager
def _environment(bootstrap: str, prefix: str) -> Iterator[None]:
    """Of the environment's settings only the way into Kafka counts, so that the story is the same everywhere. Services and
    commands find the demo's Kafka there."""
    ours = [name for name in os.environ if name.startswith("CHOREO_") and name not in _KEPT]
    before = {name: os.environ.pop(name) for name in ours}
    os.environ |= {"CHOREO_BOOTSTRAP": bootstrap, "CHOREO_TOPIC_PREFIX": prefix}
    try:
        yield
    finally:
        del os.environ["CHOREO_BOOTSTRAP"], os.environ["CHOREO_TOPIC_PREFIX"]
        os.environ |= before


@contextmanager
def _log_in(path: Path) -> Iterator[None]:
    """What choreo logs goes into a file: the screen tells the story."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s  %(message)s"))
    logger = logging.getLogger("choreo")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()
