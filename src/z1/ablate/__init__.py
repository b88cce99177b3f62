"""``z1 ablate``: named variants of the RL settings on the same tasks, seeds and equal budgets of env steps."""
