"""Machines of workers come, leave and die, and nothing is lost; one lab for all of it."""
