"""The ERP as we wish it were: a small port, and one adapter per real ERP."""
