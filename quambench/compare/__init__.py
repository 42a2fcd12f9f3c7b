"""This code against another revision of it: each is run by a worker of its own."""
