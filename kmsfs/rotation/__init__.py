"""Run rotations of secrets: the four steps, by a program of the operator's or one of ours."""
