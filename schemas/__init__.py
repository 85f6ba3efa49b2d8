"""Dictionaries: the JSON of each system, and what it means in our words. They know shapes, and no HTTP."""
