"""The proof: both models run on the same inputs, and the rewrite to blame if they differ."""
