"""The slotted network: sites, slots, and the layers they are on."""
