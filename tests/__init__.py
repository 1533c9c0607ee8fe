"""The tests are a package, so that `tests.support` can be imported by tests, by worker scripts and by `python -m`."""
