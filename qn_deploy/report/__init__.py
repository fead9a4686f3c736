"""Terminal reports."""
