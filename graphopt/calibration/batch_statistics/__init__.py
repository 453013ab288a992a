"""What layers see on average, from the statistics of the file's own batch normalizations."""

from graphopt.calibration.batch_statistics.layers import recorded_moments, with_means
from graphopt.calibration.batch_statistics.propagate import channel_moments
from graphopt.calibration.batch_statistics.step import ChannelMoments

__all__ = ["ChannelMoments", "channel_moments", "recorded_moments", "with_means"]
