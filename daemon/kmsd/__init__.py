"""kmsd: the key daemon. It owns key material, decides, audits, and never touches files."""
