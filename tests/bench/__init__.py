"""Measurements. They print tables and never decide a test."""
