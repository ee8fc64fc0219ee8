"""Measured numbers as tables for people."""
