"""The accounts of a realm, and who of the machine's users belongs to which."""
