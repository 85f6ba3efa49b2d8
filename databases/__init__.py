"""Connections, clock and column types that the ledger and the ERP's staging tables share. Knows no table."""
