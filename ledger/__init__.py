"""What we know for certain: orders, plans, attempts, events, signals. The broker holds only hints.

Every write is named, in the file of its subject, and is one transaction; its conditions are in its statements.
"""
