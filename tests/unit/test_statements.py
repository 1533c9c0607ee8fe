"""Which SQL is taken for one that ends the transaction? What does is refused, and nothing else is."""

from __future__ import annotations

import pytest

from choreo.storage.statements import forbidden


@pytest.mark.parametrize(
    "text",
    [
        "",
        "select 1",
        "SELECT CASE WHEN a THEN 1 ELSE 2 END FROM b",
        "select 'commit'; select 'rollback; commit'",
        "select 'it''s; commit'",
        r"select E'\'; commit; '",
        'select "commit" from "begin; end"',
        "-- commit;\nselect 1",
        "/* ; commit ; */ select 1",
        "insert into commits values (1); update rollback_log set abort = 1",
        "do $$ begin perform 1; end $$",
        "create function f() returns int language plpgsql as $body$ begin return 1; commit; end $body$",
        "SAVEPOINT mine",
        "ROLLBACK TO mine",
        "rollback work to savepoint mine",
        "ROLLBACK TRANSACTION TO SAVEPOINT mine",
        "RELEASE mine",
        "prepare plan as select 1",
        "select start, prepare, discard from t",
        "select 1;;;",
    ],
)
def test_what_a_handler_may_say(text: str) -> None:
    assert forbidden(text) is None


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("COMMIT", "COMMIT"),
        ("\n\t commit and chain ;", "COMMIT"),
        ("; ;commit", "COMMIT"),
        ("/* a */ -- b\n/* c */ END", "END"),
        ("select 1; ROLLBACK", "ROLLBACK"),
        ("rollback work", "ROLLBACK"),
        ("abort", "ABORT"),
        ("begin isolation level serializable", "BEGIN"),
        ("START  TRANSACTION", "START TRANSACTION"),
        ("prepare transaction 'x'", "PREPARE TRANSACTION"),
        ("discard all", "DISCARD"),
        ("select ';'; commit", "COMMIT"),
        ("select $a$;$a$;commit", "COMMIT"),
        ("select $$it's$$; commit", "COMMIT"),
        ("RELEASE choreo_delivery", "the savepoint choreo_delivery"),
        ('ROLLBACK TO "choreo_delivery"', "the savepoint choreo_delivery"),
        ("savepoint CHOREO_DELIVERY", "the savepoint choreo_delivery"),
    ],
)
def test_what_would_end_the_transaction(text: str, command: str) -> None:
    assert forbidden(text) == command
