"""Linters as tests."""
