"""The operations of kmsd, each declared once; server, client, CLI, docs and tests derive from here."""
