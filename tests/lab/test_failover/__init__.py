"""Primaries of the database's cluster fail, and nothing acknowledged is lost; one lab for all."""
