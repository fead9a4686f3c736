"""Programs: capture, save and load, lowering, export."""
