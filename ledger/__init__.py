"""What we know for certain: orders, plans, attempts, events, signals. The broker holds only hints."""
