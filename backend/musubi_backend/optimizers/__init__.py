"""Optimizers by name: a table of what there is (no torch), and our own ones.

`entry`, `registry` and `table/` are data that nodes read too. The classes of this package are imported when one is chosen.
"""
