"""Losses in the forms that other libraries call them by. None of these libraries is a dependency."""
