"""Measures the fleet beside what one would use instead. Run with `make bench`; see bench/README.md."""
