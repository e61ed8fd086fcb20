"""The parameter tree in the manner of SSM Parameter Store."""
