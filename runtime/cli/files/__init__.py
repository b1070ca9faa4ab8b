"""Files of a container, copied out of it and into it."""
