"""From a float slotted network and its adapters to one shared profile, and adapters as integers of that profile."""
