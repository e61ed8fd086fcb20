"""What changed: a short memory of changes to keys, parameters and secrets, and who is told of them."""
