"""Implementations behind the interface of `decoding/oracle/engine.py`: our own, and transformers."""
