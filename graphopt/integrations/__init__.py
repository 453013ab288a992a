"""graphopt inside other tools."""
