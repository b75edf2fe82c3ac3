"""The command line: the only part of hmdc-hub that prints, exits or reads arguments."""
