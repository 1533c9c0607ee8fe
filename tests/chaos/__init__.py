"""Real worker processes on a real Kafka, killed, stopped and starved; each file is one row of the crash matrix."""
