"""The browser demo that ``twinsep demo`` serves: the page and its job queue."""
