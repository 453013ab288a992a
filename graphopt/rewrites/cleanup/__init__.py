"""Clean-up: nothing here changes what is computed, or how; it only takes away what is not needed."""
