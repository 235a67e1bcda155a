"""From prompt, picture and mask to what the U-Net reads."""
