"""Sizes and scores as data; nothing is printed here."""
