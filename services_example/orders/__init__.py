"""Takes orders and says how they end."""
