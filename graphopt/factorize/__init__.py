"""The mathematics: arrays in, factors and errors out. Knows numpy and scipy, nothing of graphs."""
