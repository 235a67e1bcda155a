"""A build that goes on after it was killed: the cache of what it has made, and the stages that keep their results there."""
