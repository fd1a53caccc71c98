"""Fusion: what becomes a kernel, its text, and how it runs."""
