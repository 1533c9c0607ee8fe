"""What the tests stand on: a real Kafka, worker processes, faults, a ledger of effects, and the oracle that judges."""
