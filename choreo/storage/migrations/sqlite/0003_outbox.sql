-- Events that wait to be published: each was written in the transaction of what it tells of, and is deleted once Kafka has acknowledged it.
-- Of two rows of one key, the one that was committed first has the lower seq: a file has one writer at a time.
CREATE TABLE choreo_outbox (
    seq            INTEGER PRIMARY KEY AUTOINCREMENT,
    id             TEXT    NOT NULL, -- the event's id
    aggregatetype  TEXT    NOT NULL, -- the topic
    aggregateid    BLOB,             -- the key
    type           TEXT    NOT NULL,
    payload        BLOB,             -- the record's value; NULL is a tombstone
    headers        BLOB    NOT NULL, -- a msgpack array of [name, value]
    consumer_group TEXT    NOT NULL,
    shard          INTEGER NOT NULL,
    state          TEXT    NOT NULL CHECK (state IN ('due', 'timer', 'aside')),
    due_at_ms      INTEGER,
    created_at_ms  INTEGER NOT NULL,
    reason         TEXT,
    CHECK (state <> 'timer' OR due_at_ms IS NOT NULL),
    CHECK ((state = 'aside') = (reason IS NOT NULL))
);

CREATE INDEX choreo_outbox_due ON choreo_outbox (consumer_group, seq) WHERE state = 'due';
CREATE INDEX choreo_outbox_timers ON choreo_outbox (consumer_group, due_at_ms) WHERE state = 'timer';
CREATE INDEX choreo_outbox_aside ON choreo_outbox (consumer_group, aggregatetype, aggregateid) WHERE state = 'aside';

-- Who publishes which shard, and until when, by this host's clock.
CREATE TABLE choreo_outbox_leases (
    consumer_group TEXT    NOT NULL,
    shard          INTEGER NOT NULL,
    relay          TEXT    NOT NULL,
    ends_at_ms     INTEGER NOT NULL,
    PRIMARY KEY (consumer_group, shard)
) WITHOUT ROWID;
CREATE TABLE choreo_outbox_relays (
    consumer_group TEXT    NOT NULL,
    relay          TEXT    NOT NULL,
    ends_at_ms     INTEGER NOT NULL,
    PRIMARY KEY (consumer_group, relay)
) WITHOUT ROWID;
