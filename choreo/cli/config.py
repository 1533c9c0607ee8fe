"""``choreo config MODULE:NAME``: each setting as it counts here, and who set it. Secrets are masked."""

from __future__ import annotations

from choreo.cli import options, screen
from choreo.cli.loading import load_target


def config(
    target: options.ModuleTarget,
    bootstrap: options.Bootstrap = None,
    topic_prefix: options.TopicPrefix = None,
    as_json: options.AsJson = False,
) -> None:
    """Print each setting of a service with its value and its origin: flag > environment > code > default."""
    found = load_target(target, {"bootstrap": bootstrap, "topic_prefix": topic_prefix})
    settings = found.resolved.origins
    if as_json:
        screen.print_json({"service": found.name, "settings": settings})
        return
    rows = [(setting.name, screen.safe(setting.value, 400), setting.origin) for setting in settings]
    screen.show(screen.table(("setting", "value", "from"), rows, whole=("setting", "from")))
