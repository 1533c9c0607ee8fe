"""Has each worker an id of its own, and the one after a crash the same?"""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from choreo.transactional_id import seat

HOLDS = """
import sys, time
from pathlib import Path
from choreo.transactional_id import seat
with seat("payments", Path(sys.argv[1])) as made:
    print(made, flush=True)
    time.sleep(60)
"""


def test_the_next_one_has_the_id_of_the_one_before(tmp_path: Path) -> None:
    with seat("payments", tmp_path) as first:
        pass
    with seat("payments", tmp_path) as second:
        pass

    assert first == second
    assert re.fullmatch(r"payments-[0-9a-f-]{36}", first)


def test_two_at_a_time_have_two_and_groups_have_their_own(tmp_path: Path) -> None:
    with seat("payments", tmp_path) as first, seat("payments", tmp_path) as second, seat("orders", tmp_path) as other:
        assert len({first, second, other}) == 3
    with seat("payments", tmp_path) as third:
        assert third == first


def test_it_is_free_when_its_process_was_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        theirs = process.stdout.readline().strip()
        with seat("payments", tmp_path) as mine:
            assert mine != theirs
        process.kill()
        process.wait(10)

    with seat("payments", tmp_path) as mine:
        assert mine == theirs


def test_a_child_process_does_not_keep_it(tmp_path: Path) -> None:
    with seat("payments", tmp_path), subprocess.Popen(["sleep", "60"], close_fds=False) as child:
        inherited = [os.readlink(f"/proc/{child.pid}/fd/{name}") for name in os.listdir(f"/proc/{child.pid}/fd")]
        child.kill()
    assert not [name for name in inherited if "transactions" in name]


def test_a_copy_of_the_directory_is_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with seat("payments", tmp_path / "a") as first:
        pass
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with seat("payments", tmp_path / "b") as second:
        assert second != first


def test_where_nothing_can_be_written_it_is_a_new_one_and_says_what_that_costs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING, "choreo.transactions"), seat("payments", tmp_path / "file" / "below") as first:
        pass
    with seat("payments", tmp_path / "file" / "below") as second:
        assert second != first
    assert "set transactional_id, or make the directory writable" in caplog.text
