"""Keeps the shelves, and reserves what is on them."""
