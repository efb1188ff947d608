"""Decoding methods: one file a method, `contrast.py` under those that contrast."""
