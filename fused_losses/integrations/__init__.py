"""Losses with the signatures by which other libraries call them. None of these libraries is a dependency."""
