"""Rewards, advantages and losses: pure functions that can be checked against the paper in one sitting."""
