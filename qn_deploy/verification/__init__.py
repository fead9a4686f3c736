"""Verification: numerics, isolated runs, the parity ladder."""
