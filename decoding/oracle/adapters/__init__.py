"""Implementations behind the one interface of `adapter.py`: our own, and transformers."""
