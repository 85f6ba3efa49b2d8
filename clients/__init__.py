"""HTTP to each system: how to ask, in the vendor's own words."""
