"""Rewrites that compute a cheaper function near the old one, inside a budget."""
