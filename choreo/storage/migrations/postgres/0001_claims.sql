-- Which migrations have run: one row each.
CREATE TABLE choreo_schema (
    version    integer     NOT NULL PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- One row says: this handler of this group has succeeded with this event. Ids are compared byte by byte, whatever the
-- database's collation.
CREATE TABLE choreo_claims (
    consumer_group text COLLATE "C" NOT NULL,
    handler        text COLLATE "C" NOT NULL,
    event_id       text COLLATE "C" NOT NULL,
    run            text COLLATE "C" NOT NULL,
    claimed_at     timestamptz      NOT NULL DEFAULT now(),
    payload        bytea            NOT NULL,
    PRIMARY KEY (consumer_group, handler, event_id, run)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);

-- Old claims are deleted, the oldest first.
CREATE INDEX choreo_claims_by_age ON choreo_claims (consumer_group, claimed_at);
