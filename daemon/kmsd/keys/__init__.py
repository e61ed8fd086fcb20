"""KMS keys: their states, their material, and the operations on them."""
