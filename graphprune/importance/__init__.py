"""What tells which blocks can be spared: what they do to the stream, and what is lost without them."""
