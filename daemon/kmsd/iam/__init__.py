"""Users, groups, roles and policies of an account."""
