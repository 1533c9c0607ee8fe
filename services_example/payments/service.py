"""The service `payments`: ``choreo run services_example.payments.service:payments``."""

from __future__ import annotations

from pathlib import Path

from choreo import Service
from services_example.database import shop_file
from services_example.payments.gateway import DemoGateway
from services_example.payments.handlers import ChargeCard, RefundPayment


def payments(data: Path | None = None) -> Service:
    """The gateway's file is in `data`, by default in $SHOP_DATA. Opens nothing until it runs."""
    gateway = DemoGateway(shop_file("gateway.db", data))
    return Service("payments", handlers=[ChargeCard(gateway), RefundPayment(gateway)], resources=[gateway])
