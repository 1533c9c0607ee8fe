"""The service `shipping`: ``choreo run services_example.shipping.service:shipping``."""

from __future__ import annotations

from pathlib import Path

from choreo import Service
from services_example.database import shop_file
from services_example.shipping.desk import PackingDesk
from services_example.shipping.handlers import ShipOrder


def shipping(data: Path | None = None) -> Service:
    """Its desk is in `data`, by default in $SHOP_DATA. Opens nothing until it runs."""
    desk = PackingDesk(shop_file("shipping.db", data))
    return Service("shipping", handlers=[ShipOrder(desk)], resources=[desk])
