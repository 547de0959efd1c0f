"""A device and its cloud over many answers: who makes each, what was learnt, and the server around them."""
