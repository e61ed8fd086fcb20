"""Who may do what, and why not: the evaluator's answers, laid open for who may read the policy."""
