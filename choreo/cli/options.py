"""Which words do the commands share? Their options, each written once."""

from __future__ import annotations

from typing import Annotated

import typer

ModuleTarget = Annotated[
    str, typer.Argument(metavar="MODULE:NAME", help="A Service, or a function that returns one: shop.payments.service:payments.")
]
ServiceTarget = Annotated[str, typer.Argument(metavar="SERVICE", help="The service's name as Kafka knows it, or MODULE:NAME.")]
Bootstrap = Annotated[
    str | None, typer.Option("--bootstrap", metavar="HOST:PORT[,...]", help="Kafka, in place of CHOREO_BOOTSTRAP and of the code.")
]
TopicPrefix = Annotated[str | None, typer.Option("--topic-prefix", metavar="TEXT", help="In place of CHOREO_TOPIC_PREFIX.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, nothing else there.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do it without asking.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done; write nothing, whatever else is said.")]
HandlerName = Annotated[str | None, typer.Option("--handler", metavar="NAME", help="Letters of this handler only.")]
