"""The page that ``twinsep demo`` opens, and the queue of its songs."""
