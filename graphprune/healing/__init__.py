"""Repairing in closed form what was cut: fitted, block after block, to what the dense model computes."""
