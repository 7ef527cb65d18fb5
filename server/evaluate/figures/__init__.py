"""Figures of an evaluation, and the statistics behind them."""
