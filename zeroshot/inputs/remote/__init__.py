"""Bytes from other machines: HTTP, object stores, and copies of them on disk."""
