"""Programs for those who work on hmdc-hub."""
