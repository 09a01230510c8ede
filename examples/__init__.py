"""One folder per promise: programs that use Wirestate as a reader would."""
