"""The driver that closed-form methods share: keys, target search, residual, solve."""
