"""Secrets where programs look for them: files rendered from templates, and a path of the parameter tree as files in memory."""
