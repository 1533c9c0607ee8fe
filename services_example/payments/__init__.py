"""Charges cards, and gives the money back."""
