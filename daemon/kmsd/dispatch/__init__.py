"""From a decoded frame to an answer: find, decode, authorise, act, audit."""
