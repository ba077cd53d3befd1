"""What to remove: costs, candidates, and the search among them."""
