"""The package of all tests."""
