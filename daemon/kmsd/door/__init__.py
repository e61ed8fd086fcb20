"""The HTTP door: AWS's JSON 1.1 and query protocols, signed with Signature Version 4."""
