"""The programs in good/ and bad/ are read by type checkers, not run."""

collect_ignore_glob = ["good/*", "bad/*"]
