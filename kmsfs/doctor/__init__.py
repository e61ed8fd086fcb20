"""Look at the machine and the key daemon as somebody who has seen this go wrong would."""
