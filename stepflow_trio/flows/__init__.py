"""What a flow says, and what follows from it: reading, checking, expressions, the plan of a run. No I/O."""
