"""Custom key stores: PKCS #11 tokens that keep KMS keys."""
