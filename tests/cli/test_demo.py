"""Does the demo tell its story to a good end, in time; and does its check find out a shop that does wrong?"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.kafka_access import KafkaAccess

GOOD_TIME_S = 30.0
DEADLINE_S = 150.0
MAIN = "import sys; from choreo.cli.main import main; sys.argv = ['choreo', 'demo', *sys.argv[1:]]; main()"

CHARGES_TWICE = """
from services_example.payments.gateway import DemoGateway

charge = DemoGateway.charge

async def charge_twice(self, reference, cents, card_token, *, idempotency_key):
    answer = await charge(self, reference, cents, card_token, idempotency_key=idempotency_key)
    if reference == "o-1007":
        with self.transaction() as rows:
            rows.execute("insert into entries values (?, ?)", (reference, cents))
    return answer

DemoGateway.charge = charge_twice
"""
FORGETS_A_PARCEL = """
from services_example.shipping.desk import PackingDesk

bring = PackingDesk.bring
PackingDesk.bring = lambda self, order_id, need, *, event_id: order_id != "o-1009" and bring(self, order_id, need, event_id=event_id)
"""
MENDS_NOTHING = """
import choreo.cli.demo_story

choreo.cli.demo_story.mend_gateway = lambda folder: None
"""
NO_SHOP = "import sys; sys.modules['services_example'] = None"


def run(folder: Path, *arguments: str, first: str = "", env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """``choreo demo`` in `folder`, which holds its temporary files; after the lines in `first`."""
    return subprocess.run(
        command(arguments, first),
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder), "COLUMNS": "100", **(env or {})},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def command(arguments: Sequence[str], first: str = "") -> list[str]:
    return [sys.executable, "-c", f"{first}\n{MAIN}", *arguments]


def test_the_demo_ends_well_and_in_time(tmp_path: Path) -> None:
    began_s = time.monotonic()
    told = run(tmp_path)
    took_s = time.monotonic() - began_s

    assert (told.returncode, told.stderr) == (0, "")
    assert took_s < GOOD_TIME_S
    assert "ok         every order has ended: 180 shipped, 20 cancelled" in told.stdout
    assert "ok         no effect happened twice: 189 cards charged once, 9 of them paid back, 180 parcels" in told.stdout
    assert "ok         no letter is open but the 3 of bytes that are no event" in told.stdout
    assert "all is well, after" in told.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_demo_shows_the_letters_the_replay_and_the_order_from_end_to_end(tmp_path: Path) -> None:
    told = run(tmp_path, "--orders", "60").stdout

    for words in (
        "inside this process (127.0.0.1:",
        "waiting    o-1048: their charges are dead letters",
        "$ choreo dlq report payments",
        "PermanentError gateway.py",
        "1 resolved",
        "order.placed ",
        "└─ ✓ orders/complete-order ",
    ):
        assert words in told
    assert re.search(r"✓ payments/charge-card +died .* after 1 attempt, PermanentError", told)
    assert re.search(r"replayed [0-9:]+, run [0-9a-f]{8} by ", told)


def test_a_few_orders_without_letters_have_a_short_story(tmp_path: Path) -> None:
    told = run(tmp_path, "--orders", "5")

    assert (told.returncode, told.stderr) == (0, "")
    assert "$ choreo" not in told.stdout
    assert "every order has ended: 5 shipped" in told.stdout


def test_settings_of_the_environment_do_not_change_the_story(tmp_path: Path) -> None:
    environment = {"CHOREO_BOOTSTRAP": "nowhere:1", "CHOREO_EFFECTS": "offsets", "CHOREO_TOPIC_PREFIX": "x.", "SHOP_DATA": "/nowhere"}

    told = run(tmp_path, "--orders", "5", env=environment)

    assert (told.returncode, told.stderr) == (0, "")


# ---- the check can fail ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bug", "found"),
    [
        (CHARGES_TWICE, r"FAIL  o-1007: shipped, and the card says \[(\d+), \1\] cents"),
        (FORGETS_A_PARCEL, "FAIL  o-1009: neither shipped nor cancelled"),
        (MENDS_NOTHING, "FAIL  payments: the letter of o-1048 in charge-card is open"),
    ],
    ids=["an effect twice", "an order without an end", "a fix that is none"],
)
def test_a_shop_that_does_wrong_is_found_out(tmp_path: Path, bug: str, found: str) -> None:
    told = run(tmp_path, "--orders", "60", first=bug)

    assert told.returncode == 1
    assert re.search(found, told.stdout)
    assert "all is well" not in told.stdout
    (kept,) = tmp_path.iterdir()
    assert f"its log and its books stay in {kept}" in told.stdout
    assert (kept / "demo.log").stat().st_size > 0


def test_without_its_shop_the_demo_says_what_to_do_in_one_line(tmp_path: Path) -> None:
    told = run(tmp_path, first=NO_SHOP)

    assert told.returncode == 2
    assert told.stdout == ""
    assert told.stderr == (
        "error  the demo's shop, services_example, is not installed; it comes with choreo: pip install --force-reinstall choreo\n"
    )


def _hear_ctrl_c() -> None:
    # A test run in the background of a shell has SIGINT ignored, and its children inherit that.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_ends_it_cleanly(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command([]),
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_hear_ctrl_c,
    ) as telling:
        assert telling.stdout is not None
        for line in telling.stdout:
            if "orders are placed" in line:
                break
        telling.send_signal(signal.SIGINT)
        _, said = telling.communicate(timeout=DEADLINE_S)

    assert (telling.returncode, said) == (130, "stopped\n")
    assert list(tmp_path.iterdir()) == []


# ---- on a real Kafka ------------------------------------------------------------------------------------------------


@pytest.mark.kafka
def test_the_demo_plays_on_a_real_kafka_under_names_of_its_own(tmp_path: Path, kafka: KafkaAccess) -> None:
    told = run(tmp_path, "--orders", "60", "--bootstrap", kafka.bootstrap)

    assert (told.returncode, told.stderr) == (0, "")
    assert re.search(rf"choreo dlq report payments --bootstrap {kafka.bootstrap} --topic-prefix demo-[0-9a-f]{{4}}\.\n", told.stdout)


@pytest.mark.kafka
def test_a_kafka_that_is_not_there_is_said_in_one_line(tmp_path: Path) -> None:
    told = run(tmp_path, "--bootstrap", "127.0.0.1:1")

    assert told.returncode == 4
    assert "is Kafka up, and is CHOREO_BOOTSTRAP right?" in told.stderr
