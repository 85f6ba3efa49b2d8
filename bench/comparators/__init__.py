"""What a user would pick instead of the fleet, each as one would write it; started with `python -m` by the harness."""
