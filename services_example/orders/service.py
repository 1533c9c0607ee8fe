"""The service `orders`: ``choreo run services_example.orders.service:orders``."""

from __future__ import annotations

from pathlib import Path

from choreo import Service
from services_example.database import shop_file
from services_example.orders.book import OrderBook
from services_example.orders.events import OrderPlaced
from services_example.orders.handlers import CancelOrder, CompleteOrder, TrackOrder


def orders(data: Path | None = None) -> Service:
    """Its book is in `data`, by default in $SHOP_DATA. Opens nothing until it runs."""
    book = OrderBook(shop_file("orders.db", data))
    return Service(
        "orders",
        handlers=[TrackOrder(book), CancelOrder(book), CompleteOrder(book)],
        publishes=[OrderPlaced],
        resources=[book],
    )
