-- Which migrations have run: the highest number counts.
CREATE TABLE choreo_schema (version INTEGER NOT NULL);

-- One row says: this handler of this group has succeeded with this event. No rowid: the key is the row, so that a lookup is
-- one search and an insert writes one page.
CREATE TABLE choreo_claims (
    consumer_group TEXT    NOT NULL,
    handler        TEXT    NOT NULL,
    event_id       TEXT    NOT NULL,
    run            TEXT    NOT NULL,
    claimed_at_ms  INTEGER NOT NULL,
    payload        BLOB    NOT NULL,
    PRIMARY KEY (consumer_group, handler, event_id, run)
) WITHOUT ROWID;
