"""How processes start; nothing is decided here."""
