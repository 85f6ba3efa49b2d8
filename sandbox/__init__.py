"""Small imitations of the five order systems and of an ERP, written from the vendors' documents."""
