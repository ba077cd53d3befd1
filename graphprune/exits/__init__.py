"""Early exits: heads fitted in closed form or convexly, criteria, thresholds, and what they come to."""
