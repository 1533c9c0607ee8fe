-- Old claims are deleted, the oldest first.
CREATE INDEX choreo_claims_by_age ON choreo_claims (consumer_group, claimed_at_ms);
