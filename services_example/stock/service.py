"""The service `stock`: ``choreo run services_example.stock.service:stock``."""

from __future__ import annotations

from pathlib import Path

from choreo import Service
from services_example.database import shop_file
from services_example.stock.handlers import ReserveStock
from services_example.stock.shelves import Shelves


def stock(data: Path | None = None) -> Service:
    """Its shelves are in `data`, by default in $SHOP_DATA. Opens nothing until it runs."""
    shelves = Shelves(shop_file("stock.db", data))
    return Service("stock", handlers=[ReserveStock(shelves)], resources=[shelves])
