"""Many videos or scenes by many instructions: over the devices of one machine, or of a cluster by Ray."""
