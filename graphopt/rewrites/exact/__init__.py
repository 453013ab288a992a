"""Rewrites that compute the same function up to float rounding."""
