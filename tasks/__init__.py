"""What happens to an order, one step at a time."""
