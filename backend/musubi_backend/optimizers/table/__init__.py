"""Rows of the table, a module for each source. Data; no torch."""
