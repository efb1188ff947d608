"""Decoding methods: one file per method, `contrast.py` under those that contrast."""
