"""PKCS #11 tokens: hardware security modules, smart cards, TPMs behind tpm2-pkcs11, SoftHSM."""
