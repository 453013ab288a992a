"""Inputs: read from the user or drawn at random, split into fitting and held-out parts."""
